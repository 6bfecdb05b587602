"""The anomaly detector: its network, synthetic lesions and its training."""
