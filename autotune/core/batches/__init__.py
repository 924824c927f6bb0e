"""The micro-batches that a candidate makes of a dataset."""
