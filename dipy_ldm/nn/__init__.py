"""Building blocks of all networks, for any number of spatial dimensions."""
