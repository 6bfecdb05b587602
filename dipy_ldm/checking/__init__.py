"""What is looked at before a long training: findings, green, amber, red or grey."""
