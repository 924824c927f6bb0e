"""Every `autotune` command that the README shows does what it says, on a smaller model and budget."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from autotune.core.candidate import Candidate
from autotune.core.workload import Workload

README = Path(__file__).parents[1] / "README.md"
SMALLER = {
    "model=smollm2": "model=tiny",
    "model=llama_3_1_8b": "model=tiny",
    "model=qwen2_5_7b": "model=tiny",
    "candidate.max_length=1024,4096": "candidate.max_length=128,256",
    "budget.minutes=10": "budget.minutes=null",
}
QUICK = (
    "budget.minutes=null",  # a busy machine takes its time
    "budget.trials=2",
    "recipe.max_steps=3",
    "recipe.effective_batch_size=4",
)


def commands() -> list[str]:
    """The `autotune` lines of the README's shell blocks, in order."""
    blocks = re.findall(r"^```sh\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("autotune ")]


def sessions() -> list[list[str]]:
    """The same, those about one run directory together, for one needs what another left there; the longest first."""
    found: dict[str, list[str]] = {}
    for line in commands():
        named = re.search(r"\bruns/\w+", line)
        found.setdefault(named[0] if named else line, []).append(line)
    return sorted(found.values(), key=lambda lines: "search" not in lines[0])


@pytest.fixture(scope="session")
def shared_home(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """One cache for all processes of a test run, as a reader has one for all commands."""
    base = tmp_path_factory.getbasetemp()
    return (base if worker_id == "master" else base.parent) / "readme-home"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, workload: Workload) -> Path:
    """Where the README's reader stands: with a model and two files of their own."""
    directory = tmp_path_factory.mktemp("reader")
    shutil.copytree(workload.model.path, directory / "my-model")
    rows = [{"question": f"What is {n} and {n}?", "answer": f"It is {2 * n}, which is twice {n}."} for n in range(40)]
    (directory / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "faq.csv").write_text("q,a\n" + "".join(f'{row["question"]},"{row["answer"]}"\n' for row in rows))
    return directory


def test_the_readme_shows_every_command() -> None:
    """What is tested below is not an empty list."""
    assert {shlex.split(line)[1] for line in commands()} == {"probe", "estimate", "search", "run"}


@pytest.mark.parametrize("lines", sessions(), ids=" && ".join)
def test_commands_of_the_readme(lines: list[str], directory: Path, shared_home: Path) -> None:
    """They end well, in the order in which the README's reader would type them."""
    for line in lines:
        words = [SMALLER.get(word, word) for word in shlex.split(line)[1:]]
        trains = not {"--help", "--cfg"} & set(words)
        if words[0] == "search" and trains:
            words += [word for word in QUICK if word.split("=")[0] not in {told.split("=")[0] for told in words}]
        if words[0] == "run":
            words.append("recipe.max_steps=3")
        done = subprocess.run(
            [sys.executable, "-m", "autotune", *words],
            cwd=directory,
            env={**os.environ, "AUTOTUNE_HOME": str(shared_home)},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
        if "format=json" in words:
            key = "fits" if words[0] == "estimate" else "best"
            assert all(key in json.loads(answer) for answer in done.stdout.splitlines())


def test_the_readmes_run_file_is_one_that_a_search_writes() -> None:
    """The example's candidate is complete, by its own names."""
    [block] = re.findall(r"^```yaml\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    Candidate(**yaml.safe_load(block)["candidate"])
