"""Predicted memory and time of candidates, for `autotune estimate` and for a search."""
