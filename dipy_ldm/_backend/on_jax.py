"""Functions that need JAX itself."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import jax
import keras

from dipy_ldm._utils.types import Tensor

# Compiling takes seconds for each batch size: pad batches up to this factor to reuse
# the program of a larger size.
_MAX_PADDING = 4


def compiled(function: Callable, inputs: list[Any], networks: list[Any]) -> Callable:
    """Compile a function of tensors; see ``dipy_ldm._backend.arrays``."""
    variables = [v for network in networks for v in network.variables]

    @jax.jit
    def traced(values: list, *arrays):
        # Weights are arguments: others would be compiled in as constants.
        with keras.StatelessScope(state_mapping=zip(variables, values)):
            return function(*arrays)

    sizes: dict[tuple, set] = defaultdict(set)

    def call(*arrays):
        cast = [keras.ops.cast(a, x.dtype) for a, x in zip(arrays, inputs)]
        n, compiled_sizes = len(cast[0]), sizes[tuple(a.shape[1:] for a in cast)]
        size = min((s for s in compiled_sizes if n <= s <= _MAX_PADDING * n), default=n)
        compiled_sizes.add(size)
        values = [v.value for v in variables]
        if size == n:
            return traced(values, *cast)
        padded = [jax.numpy.resize(a, (size, *a.shape[1:])) for a in cast]
        return jax.tree.map(lambda x: x[:n], traced(values, *padded))

    return call


def gradients(function: Callable) -> Callable:
    """Return a compiled function of the gradients of a function's sum."""
    differentiated = jax.jit(jax.grad(lambda tensors: function(*tensors).sum()))
    return lambda *tensors: differentiated(tensors)


def conditionally(
    condition: Tensor, change: Callable, otherwise: Callable, variables: list
) -> None:
    """Apply one of two updates to variables, within a training step."""

    def values_after(function: Callable):
        def values():
            # A branch of JAX may not assign to outer variables.
            mapping = [(v, v.value) for v in variables]
            with keras.StatelessScope(state_mapping=mapping) as scope:
                function()
            return [scope.get_current_value(v) for v in variables]

        return values

    changed = jax.lax.cond(condition, values_after(change), values_after(otherwise))
    for variable, value in zip(variables, changed):
        variable.assign(value)


def gpu_capabilities(strategy: None) -> list[tuple[int, ...]]:
    """Return the compute capability of the GPU, such as (8, 0), if there is one."""
    device = jax.devices()[0]
    if device.platform != "gpu":
        return []
    return [tuple(map(int, str(device.compute_capability).split(".")))]


def gpu_memory() -> float | None:
    """Return the free bytes of the GPU; None if there is none."""
    device = jax.devices()[0]
    stats = device.memory_stats() if device.platform == "gpu" else None
    return None if not stats else stats["bytes_limit"] - stats["bytes_in_use"]
