"""Training data: where it lies, what its rows mean, and the tokens that TRL makes of them."""
