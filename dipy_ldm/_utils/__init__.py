"""Checks, files, signals, tiles, subjects and values: what all folders use."""
