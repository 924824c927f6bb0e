"""Seconds of a training: the machine's speed, the law of a step, and many candidates at once."""
