"""Weights that others publish: recognised, read without running anything, turned into model folders, looked at."""
