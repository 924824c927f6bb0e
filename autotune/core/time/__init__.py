"""Seconds of a training: the speed of the machine, the law of a step, calibration, and many candidates at once."""
