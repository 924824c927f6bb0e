"""Bytes of a training: the law of a step's peak, the allocator, calibration, and whether a candidate fits."""
