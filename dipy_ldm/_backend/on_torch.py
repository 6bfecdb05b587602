"""Functions that need PyTorch itself."""

from collections.abc import Callable
from typing import Any

import keras
import torch

from dipy_ldm._utils.types import Tensor


def compiled(function: Callable, inputs: list[Any], networks: list[Any]) -> Callable:
    """Let a function of tensors take arrays; see ``dipy_ldm._backend.arrays``.

    It is not compiled: ``torch.compile`` takes a minute per network and needs a C++
    compiler.
    """

    def call(*arrays):
        with torch.no_grad():
            cast = [keras.ops.cast(a, x.dtype) for a, x in zip(arrays, inputs)]
            return function(*cast)

    return call


def gradients(function: Callable) -> Callable:
    """Return a function of the gradients of a function's sum."""

    def compute(*tensors):
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        return torch.autograd.grad(function(*leaves).sum(), leaves)

    return compute


def conditionally(
    condition: Tensor, change: Callable, otherwise: Callable, variables: list
) -> None:
    """Apply one of two updates to variables, within a training step."""
    (change if bool(condition) else otherwise)()


def gpu_capabilities(strategy: None) -> list[tuple[int, ...]]:
    """Return the compute capability of the GPU, such as (8, 0), if there is one."""
    return [torch.cuda.get_device_capability()] if torch.cuda.is_available() else []


def gpu_memory() -> float | None:
    """Return the free bytes of the GPU; None if there is none."""
    if not torch.cuda.is_available():
        return None
    # Memory that PyTorch has reserved but does not use is free, too.
    cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return torch.cuda.mem_get_info()[0] + cached
