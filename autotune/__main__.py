"""`python -m autotune` is the same as `autotune`.

Python puts the current directory first on the path of a module that it runs. A user's file there that is named like a
library (`datasets.py`, `random.py`) would be imported for it, so the directory is taken away before anything else is
imported.
"""

import sys


def leave_current_directory(path: list[str], package: str, *, safe_path: bool) -> None:
    """Take the current directory off `path`. package: the directory of autotune.

    If autotune itself lies there, as in a checkout that is not installed, the directory goes to the end of the path:
    other processes find autotune there, and libraries elsewhere. safe_path: Python has not put it on the path.
    """
    if safe_path:
        return
    current = path.pop(0)
    if package.rpartition("/")[0] == current:
        path.append(current)


if __name__ == "__main__":
    leave_current_directory(sys.path, __file__.rpartition("/")[0], safe_path=sys.flags.safe_path)

    from autotune.cli.main import main

    sys.exit(main())
