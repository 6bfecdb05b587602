"""Devices and machines: how networks are trained on many, to the result of one."""

import logging
import os
import platform

from dipy_ldm.distribution.arrays import (
    Convolution,
    compiled,
    in_batches,
    in_turn,
)
from dipy_ldm.distribution.keras_tensorflow import ReplicatedModel, onednn_is_on
from dipy_ldm.distribution.strategy import (
    STRATEGIES,
    count_replicas,
    free_memory,
    gpu_capabilities,
    make_strategy,
    scope,
    share_of,
)
from dipy_ldm.distribution.workers import (
    agree,
    chief_first,
    gathered,
    is_chief,
    of_chief,
    shared,
    spread,
    sum_of_replicas,
)

__all__ = [
    "STRATEGIES",
    "Convolution",
    "ReplicatedModel",
    "agree",
    "chief_first",
    "compiled",
    "count_replicas",
    "free_memory",
    "gathered",
    "gpu_capabilities",
    "in_batches",
    "in_turn",
    "is_chief",
    "make_strategy",
    "of_chief",
    "scope",
    "share_of",
    "shared",
    "spread",
    "sum_of_replicas",
]

if os.environ["TF_ENABLE_ONEDNN_OPTS"] == "1" and not onednn_is_on():
    # It is on for whoever imports dipy_ldm before TensorFlow; only x86 has it.
    if platform.machine() in ("x86_64", "AMD64") and platform.system() != "Darwin":
        logging.getLogger(__name__).warning(
            "TensorFlow was imported before dipy_ldm, and oneDNN, which makes training "
            "on this processor several times faster, is off; import dipy_ldm first, or "
            "set TF_ENABLE_ONEDNN_OPTS=1."
        )
