"""Training data: where it lies, what its rows mean, and the tokens that TRL makes of them."""

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")  # of the files that hold it
