"""What needs JAX itself."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import jax
import keras

from dipy_ldm._utils.types import Tensor

# To compile takes seconds, for each number of examples: up to so many times as many are
# computed instead, where there is a program for them.
_WASTE = 4


def compiled(function: Callable, inputs: list[Any], networks: list[Any]) -> Callable:
    """Compile a function of tensors; see ``dipy_ldm._backend.arrays``."""
    variables = [v for network in networks for v in network.variables]

    @jax.jit
    def traced(values, *arrays):
        # What is not an argument would stay what it was when this was compiled.
        with keras.StatelessScope(state_mapping=zip(variables, values)):
            return function(*arrays)

    sizes: dict[tuple, set] = defaultdict(set)

    def call(*arrays):
        cast = [keras.ops.cast(a, x.dtype) for a, x in zip(arrays, inputs)]
        n, compiled_sizes = len(cast[0]), sizes[tuple(a.shape[1:] for a in cast)]
        size = min((s for s in compiled_sizes if n <= s <= _WASTE * n), default=n)
        compiled_sizes.add(size)
        values = [v.value for v in variables]
        if size == n:
            return traced(values, *cast)
        whole = [jax.numpy.resize(a, (size, *a.shape[1:])) for a in cast]
        return jax.tree.map(lambda x: x[:n], traced(values, *whole))

    return call


def gradients(function: Callable) -> Callable:
    """Compile the gradients of a function's sum."""
    differentiated = jax.jit(jax.grad(lambda tensors: function(*tensors).sum()))
    return lambda *tensors: differentiated(tensors)


def conditionally(
    condition: Tensor, change: Callable, otherwise: Callable, variables: list
) -> None:
    """Change variables in one way or in another, within a step of training."""

    def after(function):
        def values():
            # Within a branch nothing may be assigned to what is outside of it.
            mapping = [(v, v.value) for v in variables]
            with keras.StatelessScope(state_mapping=mapping) as scope:
                function()
            return [scope.get_current_value(v) for v in variables]

        return values

    changed = jax.lax.cond(condition, after(change), after(otherwise))
    for variable, value in zip(variables, changed):
        variable.assign(value)


def gpu_capabilities(strategy: None) -> list[tuple[int, ...]]:
    """Return the compute capability of the GPU, such as (8, 0), if there is one."""
    device = jax.devices()[0]
    if device.platform != "gpu":
        return []
    return [tuple(map(int, str(device.compute_capability).split(".")))]


def gpu_memory() -> float | None:
    """Return how many bytes of the GPU are free; None if there is none."""
    device = jax.devices()[0]
    stats = device.memory_stats() if device.platform == "gpu" else None
    return None if not stats else stats["bytes_limit"] - stats["bytes_in_use"]
