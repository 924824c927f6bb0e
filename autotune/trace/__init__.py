"""One training step on tensors without data: what it allocates and computes, kept as profiles."""
