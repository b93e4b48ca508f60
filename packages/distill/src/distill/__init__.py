"""Distillation objectives (RSD, ...) and the trainer for one-step super-resolution."""
