"""Parts of restoring one picture: noise, tiles, norms, colour, fidelity, rows of the output."""
