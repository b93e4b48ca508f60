"""Objectives: deterministic functions of (networks, data, times, noise) that return per-sample losses; one file per idea."""
