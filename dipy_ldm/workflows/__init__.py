"""Workflows: the command line, in DIPY's manner."""
