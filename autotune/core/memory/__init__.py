"""Bytes of a training: the law of a step's peak, the allocator, and whether a candidate fits."""
