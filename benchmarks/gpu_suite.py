"""The same as `python -m benchmarks.gpu.suite`, from any directory."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])
    from benchmarks.gpu.suite import main

    sys.exit(main())
