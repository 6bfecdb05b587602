"""Command-line workflows, built on DIPY's."""
