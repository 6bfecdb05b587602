"""Judging what a model makes: fidelity, sharpness, anatomy, copies, and their pages."""
