"""Evaluation of samples: fidelity, sharpness, anatomy, memorisation, HTML reports."""
