"""Network building blocks for any number of spatial dimensions."""
