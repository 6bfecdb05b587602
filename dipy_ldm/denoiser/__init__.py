"""The denoiser: a U-Net, its conditioning and its training."""
