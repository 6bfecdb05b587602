"""Training on several devices and machines, with the same result as on one.

Only TensorFlow distributes work. With other back-ends of Keras, the same functions work
on one device.
"""

# ruff: noqa: F401 (re-exported)

from typing import TYPE_CHECKING

from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.startup import quiet

try:
    with quiet():
        import keras
except (ImportError, ValueError) as error:
    # The backend is not installed (Keras' message varies) or unknown to Keras.
    raise InputError(
        f"Keras can't be imported ({error})",
        "install what is missing, or choose 'tensorflow', 'jax' or 'torch' in "
        "~/.keras/keras.json or by the variable KERAS_BACKEND, and restart Python",
    ) from error

from dipy_ldm._backend.memory import release_memory
from dipy_ldm._backend.sharing import (
    INFERENCE_OVERHEAD,
    STRATEGIES,
    TRAINING_OVERHEAD,
    count_replicas,
    share_of,
)

if keras.config.backend() not in ("tensorflow", "jax", "torch"):
    raise InputError(
        f"Keras is set to the backend {keras.config.backend()!r}, but dipy_ldm needs "
        "'tensorflow', 'jax' or 'torch'",
        "choose one in ~/.keras/keras.json or by the variable KERAS_BACKEND, and "
        "restart Python",
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
    # The same functions for one device.
    from dipy_ldm._backend.single_device import (
        ReplicatedModel,
        add_to,
        broadcast_from_chief,
        chief_first,
        compiled,
        conditionally,
        distribute_batches,
        distributed,
        free_memory,
        gather_from_workers,
        gpu_capabilities,
        gradients,
        in_batches,
        is_chief,
        is_first_replica,
        make_strategy,
        require_agreement,
        run_two_at_a_time,
        scope,
        sum_of_replicas,
    )
