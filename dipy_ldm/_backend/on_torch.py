"""What needs PyTorch itself."""

from collections.abc import Callable
from typing import Any

import keras
import torch

from dipy_ldm._utils.types import Tensor


def compiled(function: Callable, inputs: list[Any], networks: list[Any]) -> Callable:
    """Make a function of tensors work on arrays; see ``dipy_ldm._backend.arrays``.

    It is not compiled: ``torch.compile`` takes a minute for a network, and needs a
    compiler of C++.
    """

    def call(*arrays):
        with torch.no_grad():
            cast = [keras.ops.cast(a, x.dtype) for a, x in zip(arrays, inputs)]
            return function(*cast)

    return call


def gradients(function: Callable) -> Callable:
    """Make what computes the gradients of a function's sum."""

    def compute(*tensors):
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        result = torch.autograd.grad(function(*leaves).sum(), leaves)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return result

    return compute


def conditionally(
    condition: Tensor, change: Callable, otherwise: Callable, variables: list
) -> None:
    """Change variables in one way or in another, within a step of training."""
    (change if bool(condition) else otherwise)()


def gpu_capabilities(strategy: None) -> list[tuple[int, ...]]:
    """Return the compute capability of the GPU, such as (8, 0), if there is one."""
    return [torch.cuda.get_device_capability()] if torch.cuda.is_available() else []


def gpu_memory() -> float | None:
    """Return how many bytes of the GPU are free; None if there is none."""
    if not torch.cuda.is_available():
        return None
    # What PyTorch has taken and not used is as good as free.
    cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return torch.cuda.mem_get_info()[0] + cached
