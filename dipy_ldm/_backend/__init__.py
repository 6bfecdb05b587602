"""Devices and machines: how networks are trained on many, to the result of one.

TensorFlow alone spreads work. With another back-end of Keras there is one device, and
the same functions do what is to be done there.
"""

# ruff: noqa: F401 (what the package takes from here)

from typing import TYPE_CHECKING

from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.startup import quiet

try:
    with quiet():
        import keras
except (ImportError, ValueError) as error:
    # A backend that is not installed, of which Keras has other words each time, or
    # that Keras does not know, either.
    raise InputError(
        f"Keras can't be imported ({error}); install what is missing, or choose "
        "'tensorflow', 'jax' or 'torch' in ~/.keras/keras.json or by the variable "
        "KERAS_BACKEND, and start Python again."
    ) from error

from dipy_ldm._backend.memory import release_memory
from dipy_ldm._backend.sharing import (
    ONCE_APPLYING,
    ONCE_TRAINING,
    STRATEGIES,
    count_replicas,
    share_of,
)

if keras.config.backend() not in ("tensorflow", "jax", "torch"):
    raise InputError(
        f"Keras is set to the backend {keras.config.backend()!r}, and dipy_ldm needs "
        "'tensorflow', 'jax' or 'torch'; choose one in ~/.keras/keras.json or by the "
        "variable KERAS_BACKEND, and start Python again."
    )

if TYPE_CHECKING or keras.config.backend() == "tensorflow":
    from dipy_ldm._backend.arrays import (
        add_to,
        compiled,
        conditionally,
        gradients,
        in_batches,
        run_two_at_a_time,
    )
    from dipy_ldm._backend.strategy import (
        free_memory,
        gpu_capabilities,
        make_strategy,
        scope,
        warn_without_onednn,
    )
    from dipy_ldm._backend.workers import (
        ReplicatedModel,
        broadcast_from_chief,
        chief_first,
        distribute_batches,
        distributed,
        gather_from_workers,
        is_chief,
        is_first_replica,
        require_agreement,
        sum_of_replicas,
    )

    warn_without_onednn()
else:
    # The same functions, for one device.
    from dipy_ldm._backend.single_device import *  # noqa: F403
