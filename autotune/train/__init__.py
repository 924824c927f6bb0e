"""The real training: TRL's trainer built from a task, in a worker process, measured or for a run."""
