"""The denoiser: a U-Net, what it is conditioned on, and its training."""
