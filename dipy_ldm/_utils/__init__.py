"""Checks, files, signals, tiles, plots and values: what all folders use."""
