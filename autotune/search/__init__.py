"""`autotune search`: trials, what is proposed next, the second measurement, and what is written of it."""
