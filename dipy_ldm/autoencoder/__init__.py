"""Autoencoder: quantizers, losses, networks and training."""
