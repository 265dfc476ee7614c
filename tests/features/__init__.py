"""Rows of the table of core features, one file an area; `test_features.py` runs them."""
