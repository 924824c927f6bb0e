"""`python -m autotune`: the current directory is the user's, and nothing there is imported for a library."""

import os
import subprocess
import sys
from pathlib import Path

from autotune.__main__ import leave_current_directory

TRAP = "raise SystemExit('the file of the user was imported')"
ROOT = Path(__file__).parents[1]


def test_files_named_like_libraries_are_not_imported(tmp_path: Path) -> None:
    """Neither from the directory that -m adds, nor from the one that an empty entry of PYTHONPATH means."""
    for name in ("datasets", "random", "json", "yaml", "hydra", "omegaconf", "psutil", "numpy", "argparse"):
        (tmp_path / f"{name}.py").write_text(TRAP)
    (tmp_path / "wandb").mkdir()
    words = [sys.executable, "-m", "autotune", "search", "recipe.epohcs=3"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert (done.returncode, "the nearest is recipe.epochs" in done.stderr) == (2, True)


def test_an_empty_entry_of_the_path_is_not_the_current_directory(tmp_path: Path) -> None:
    """PYTHONPATH=$PYTHONPATH:/more has one. Python itself reads `random.py` only later, so the trap is a library."""
    for name in ("hydra", "omegaconf", "yaml"):
        (tmp_path / f"{name}.py").write_text(TRAP)
    code = "import sys; from autotune.cli.main import main; sys.exit(main(sys.argv[1:]))"
    environ = {**os.environ, "PYTHONPATH": f":{ROOT}", "PYTHONSAFEPATH": "1"}
    words = [sys.executable, "-c", code, "search", "recipe.epohcs=3"]
    done = subprocess.run(words, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert (done.returncode, "the nearest is recipe.epochs" in done.stderr) == (2, True), done.stderr


def test_a_checkout_that_is_not_installed_is_still_found() -> None:
    """Other processes import autotune by the path, on which the directory then stands last."""
    path = ["/home/me/autotune", "/usr/lib/python3"]
    leave_current_directory(path, "/home/me/autotune/autotune", safe_path=False)
    assert path == ["/usr/lib/python3", "/home/me/autotune"]


def test_a_safe_path_is_left_alone() -> None:
    """With -P or PYTHONSAFEPATH the first entry is not the current directory."""
    path = ["/usr/lib/python3"]
    leave_current_directory(path, "/usr/lib/python3/site-packages/autotune", safe_path=True)
    assert path == ["/usr/lib/python3"]
