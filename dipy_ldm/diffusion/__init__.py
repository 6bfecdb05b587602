"""The method: schedules, samplers, guidance and inpainting, in numpy and keras.ops."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dipy_ldm.diffusion._options import Sampling, SamplingOptions

__all__ = ["Sampling", "SamplingOptions"]


def __getattr__(name: str):
    # Imported on access: samplers import Keras, which would slow the help of commands.
    if name in __all__:
        from dipy_ldm.diffusion import _options

        return getattr(_options, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
