"""Rows of the table of core features, one file an area; `tests/test_features.py` runs them."""
