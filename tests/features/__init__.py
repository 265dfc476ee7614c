"""Rows of the table of core features, one file for each area; `test_features.py` runs them."""
