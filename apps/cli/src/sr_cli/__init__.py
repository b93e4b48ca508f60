"""Command line of the project: train, upscale, inspect."""
