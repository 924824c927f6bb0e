"""`python -m autotune` is the same as `autotune`."""

import sys

from autotune.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
