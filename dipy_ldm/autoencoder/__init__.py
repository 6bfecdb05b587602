"""The autoencoder: quantizers, losses, networks and their training."""
