"""What latents are like before a denoiser is trained: mean, covariance, conditions."""
