"""Shared utilities: checks, files, signals, tiles, subjects and values."""
