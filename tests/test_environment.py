"""The environment: what a launcher or a shell has left changes nothing that is trained."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from autotune.environment import VARIABLES, fate_of, leave_empty_entry, take_away
from autotune.errors import UsageError

OURS = {"PYTHONSAFEPATH": "1", "PYTHONIOENCODING": "utf-8:replace"}
PAGE = Path(__file__).parents[1] / "docs" / "environment.md"


def test_what_a_launcher_leaves_is_taken_away_and_named() -> None:
    """One line for each reason, with names and values."""
    environ = {
        "ACCELERATE_MIXED_PRECISION": "bf16",
        "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR",
        "WORLD_SIZE": "2",
        "RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "HF_TOKEN": "secret",
        "HOME": "/home/me",
    }
    said = take_away(environ)
    assert environ == {"HF_TOKEN": "secret", "HOME": "/home/me", **OURS}
    assert [line.partition(" (")[0] for line in said] == [
        "not passed on: ACCELERATE_DYNAMO_BACKEND=INDUCTOR, ACCELERATE_MIXED_PRECISION=bf16",
        "not passed on: MASTER_ADDR=127.0.0.1, RANK=0, WORLD_SIZE=2",
    ]


def test_a_clean_environment_is_left_alone() -> None:
    """Nothing is said."""
    environ = {"PATH": "/bin", "OMP_NUM_THREADS": "2", "SLURM_JOB_ID": "7"}
    assert take_away(environ) == []
    assert environ.keys() == {"PATH", "OMP_NUM_THREADS", "SLURM_JOB_ID", *OURS}


@pytest.mark.parametrize(
    ("before", "after"), [(":/more", "/more"), ("/a:/b", "/a:/b"), ("/a::/b:", "/a:/b"), (":", ""), (".:/a", ".:/a")]
)
def test_an_empty_entry_of_pythonpath_is_left_out(before: str, after: str) -> None:
    """It would be the current directory of every child. A dot is written on purpose."""
    environ = {"PYTHONPATH": before}
    take_away(environ)
    assert environ["PYTHONPATH"] == after


@pytest.mark.parametrize(
    ("variable", "left"),
    [(":/more", ["/lib"]), ("/more", ["{here}", "/lib"]), ("", ["{here}", "/lib"]), (":{here}", ["{here}", "/lib"])],
)
def test_the_current_directory_leaves_the_path_unless_it_is_meant(
    variable: str, left: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Only an empty entry of PYTHONPATH, beside others, has put it there by accident."""
    monkeypatch.chdir(tmp_path)
    path = [str(tmp_path), "/lib"]
    leave_empty_entry(path, {"PYTHONPATH": variable.format(here=tmp_path)})
    assert path == [entry.format(here=tmp_path) for entry in left]


@pytest.mark.parametrize("name", ["RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK"])
def test_the_second_process_of_a_launcher_is_refused(name: str) -> None:
    """It would search and train the same as the first."""
    with pytest.raises(UsageError, match=f"{name}=1: a launcher has started several processes"):
        take_away({name: "1", "WORLD_SIZE": "2"})


@pytest.mark.parametrize(
    ("name", "fate"),
    [
        ("ACCELERATE_USE_FSDP", "taken away"),
        ("WORLD_SIZE", "taken away"),
        ("LOCAL_RANK", "taken away"),
        ("MASTER_PORT", "taken away"),
        ("SLURM_PROCID", "passed on"),
        ("TORCH_LOGS", "passed on"),
        ("TORCH_COMPILE_DISABLE", "taken away"),
        ("USE_HUB_KERNELS", "taken away"),
        ("SM_HP_MP_PARAMETERS", "taken away"),
        ("PYTHONPATH", "set"),
        ("PYTORCH_CUDA_ALLOC_CONF", "set"),
        ("CUDA_VISIBLE_DEVICES", "set"),
        ("CUDA_HOME", "passed on"),
        ("CUDA_LAUNCH_BLOCKING", "taken away"),
        ("NCCL_DEBUG", "passed on"),
        ("OMP_NUM_THREADS", "passed on"),
        ("BNB_CUDA_VERSION", "passed on"),
        ("HF_HOME", "passed on"),
        ("TRANSFORMERS_CACHE", "passed on"),
        ("TRANSFORMERS_VERBOSITY", "set"),
        ("WANDB_PROJECT", "passed on"),
    ],
)
def test_every_family_is_known(name: str, fate: str) -> None:
    """The families that launchers, schedulers and libraries have."""
    row = fate_of(name)
    assert row is not None
    assert row.fate == fate


def test_the_page_lists_every_row() -> None:
    """docs/environment.md is written from the table."""
    rows = [f"| {', '.join(f'`{name}`' for name in row.names)} | {row.fate} | {row.why} |" for row in VARIABLES]
    assert [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")] == rows


def test_a_file_named_like_a_library_is_not_imported(tmp_path: Path) -> None:
    """Children start in the user's directory, which may hold a datasets.py or a random.py."""
    for name in ("datasets.py", "random.py", "trl.py"):
        (tmp_path / name).write_text("raise SystemExit('the user's file was imported')")
    environ = dict(os.environ)
    take_away(environ)
    subprocess.run([sys.executable, "-c", "import random, datasets"], cwd=tmp_path, env=environ, check=True)
