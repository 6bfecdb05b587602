"""The latent prior: mean, covariance and linear probe, fitted before any training."""
