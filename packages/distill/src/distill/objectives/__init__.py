"""Objectives: deterministic functions of (networks, data, draws) that return per-sample losses; one file per idea."""
