"""A blind preference study in the browser."""
