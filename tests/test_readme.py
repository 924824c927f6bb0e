"""Every `autotune` command that the README shows does what it says, on a smaller model and budget.

The commands go through `main`, which is all that the console script calls, and in this process: the fork server imports
torch and TRL once for all of them.
"""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from transformers import AutoConfig, LlamaForCausalLM

from autotune.cli.main import main
from autotune.cli.settings import store_configs
from autotune.cli.usage import check
from autotune.core.candidate import Candidate
from autotune.core.workload import Workload
from autotune.machine.probe import probe
from autotune.machine.process import Measurement, Request, measure_in_process

README = Path(__file__).parents[1] / "README.md"
MODEL = "model=./my-model"  # takes the place of every model that the README names
SMALLER = {"candidate.max_length=1024,4096": "candidate.max_length=128,256", "budget.minutes=30": "budget.minutes=null"}
QUICK = (
    "budget.minutes=null",  # a busy machine takes its time
    "budget.trials=2",
    "recipe.max_steps=3",
    "recipe.effective_batch_size=4",
)
PROBE_S = 5.0  # seconds of measuring


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


@pytest.fixture(scope="module")
def probed(home: Path) -> Path:
    """The tests' cache with a probe of this machine in it.

    It was measured in a few seconds: no command here needs good rates. The lock lets one process measure for all.
    """

    def measure_quickly(request: Request, *, progress: Callable[[str], None]) -> Measurement:
        return measure_in_process(replace(request, budget_s=PROBE_S), progress=progress)

    with FileLock(home / "probe.lock"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("autotune.machine.probe.measure_in_process", measure_quickly)
        hardware = probe(home=home, progress=lambda line: None)
        for path in (home / "hardware").glob(f"{hardware.uuid}-*.json"):  # doubtful rates would be measured again
            path.write_text(json.dumps({**json.loads(path.read_text()), "doubts": []}))
    return home


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, workload: Workload) -> Path:
    """Where the README's reader stands: with two files of their own, and a model that trains in no time.

    It has one layer and `tiny`'s tokenizer, so that the demo's rows need not be tokenized again.
    """
    directory = tmp_path_factory.mktemp("reader")
    shutil.copytree(
        workload.model.path, directory / "my-model", ignore=shutil.ignore_patterns("*.safetensors", "sealed*")
    )
    config = AutoConfig.from_pretrained(workload.model.path, num_hidden_layers=1, hidden_size=64, intermediate_size=128)
    LlamaForCausalLM(config).save_pretrained(directory / "my-model")
    rows = [{"question": f"What is {n} and {n}?", "answer": f"It is {2 * n}, which is twice {n}."} for n in range(40)]
    (directory / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "faq.csv").write_text("q,a\n" + "".join(f'{row["question"]},"{row["answer"]}"\n' for row in rows))
    return directory


def test_the_readme_shows_every_command() -> None:
    """What is tested below is not an empty list."""
    assert {shlex.split(line)[1] for line in commands()} == {"probe", "estimate", "search", "run"}


def test_the_words_of_the_readme_are_right(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys, options and values are judged as they stand there, models of the catalogue too."""
    monkeypatch.chdir(directory)
    store_configs(run_file={})
    for line in commands():
        command, *words = shlex.split(line)[1:]
        if command != "run":  # which needs the file of a search
            told = [word for word in words if "=" in word]
            check(command, told, multirun="-m" in words, to_be_used=bool(told))


@pytest.mark.parametrize("lines", sessions(), ids=" && ".join)
def test_commands_of_the_readme(
    lines: list[str],
    directory: Path,
    probed: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They end well, in the order in which the README's reader would type them."""
    monkeypatch.chdir(directory)
    monkeypatch.setenv("AUTOTUNE_HOME", str(probed))
    for line in lines:
        words = [MODEL if word.startswith("model=") else SMALLER.get(word, word) for word in shlex.split(line)[1:]]
        trains = not {"--help", "--cfg"} & set(words)
        if words[0] == "search" and trains:
            words += [word for word in QUICK if word.split("=")[0] not in {told.split("=")[0] for told in words}]
        if words[0] == "run":
            words.append("recipe.max_steps=3")
        code = main(words)
        said = capsys.readouterr()
        assert code == 0, said.err
        assert said.out.strip()
        if "format=json" in words:
            key = "fits" if words[0] == "estimate" else "best"
            assert all(key in json.loads(answer) for answer in said.out.splitlines())


def test_the_run_file_that_is_shown_is_one_that_a_search_writes() -> None:
    """The candidate of the page's example is complete, by its own names."""
    page = README.parent / "docs" / "search.md"
    [block] = re.findall(r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    Candidate(**yaml.safe_load(block)["candidate"])
