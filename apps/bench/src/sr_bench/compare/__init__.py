"""One page that compares results: figures, tables, pictures."""
