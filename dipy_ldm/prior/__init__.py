"""The latent prior: mean, covariance and linear probe, before any training."""
