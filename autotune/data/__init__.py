"""Training data: where it lies, what its rows mean, and the tokens that TRL makes of them."""

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".arrow")  # of the files that hold it
COMPRESSED = (".gz", ".zst")  # may stand behind them
