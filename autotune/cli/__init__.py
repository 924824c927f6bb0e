"""The command line: words, settings, limits, and the requests that commands are given."""
