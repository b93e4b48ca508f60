"""The papers' tables as data, and results of ours joined to them."""
