"""Network building blocks for two or three spatial dimensions."""
