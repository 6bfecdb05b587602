"""The method: schedules, samplers, guidance and masks, in numpy and keras.ops."""

from dipy_ldm.diffusion._options import Sampling, SamplingOptions

__all__ = ["Sampling", "SamplingOptions"]
