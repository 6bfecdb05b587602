"""Checks of data and machine before a training, with findings by severity."""
