"""examples/: run files that a user can start from are read, composed and legal."""

import shlex
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator
from omegaconf import OmegaConf

from autotune.cli.main import main
from autotune.cli.requests import build_fixed, build_recipe
from autotune.cli.run_file import load_run_file
from autotune.cli.schema import run_schema
from autotune.cli.settings import RunSettings, find_problems, store_configs
from autotune.cli.usage import check
from autotune.core.candidate import Candidate
from autotune.core.space.legality import first_broken
from tests.core.examples import A100, PLAIN, context, workload

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.yaml"))
FROM_10_TO_3000_TOKENS = range(10, 3000, 10)


def settings_of(file: Path) -> RunSettings:
    """What `autotune run` makes of a file: its own reader's values over the defaults."""
    values, problems = load_run_file(file)
    assert problems == []
    settings: RunSettings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RunSettings), values))
    return settings


def test_there_are_three() -> None:
    """What is tested below is not an empty list."""
    assert [file.stem for file in EXAMPLES] == ["full_small_model", "lora_own_data", "qlora_8b_one_gpu"]


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_is_complete(file: Path) -> None:
    """It needs nothing from the command line, and editors that know the schema find nothing wrong either."""
    assert find_problems(settings_of(file)) == []
    assert list(Draft202012Validator(run_schema()).iter_errors(yaml.safe_load(file.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_is_a_legal_candidate(file: Path) -> None:
    """The libraries take it as it is, and its optimizer steps hold the samples that its recipe asks for."""
    settings = settings_of(file)
    recipe, candidate = build_recipe(settings.recipe), Candidate(**build_fixed(settings.candidate))
    assert candidate.method == recipe.method
    here = context(A100, PLAIN, workload(FROM_10_TO_3000_TOKENS, model={"limit": 4096}, **vars(settings.recipe)))
    assert first_broken(candidate, here) is None


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_composes(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`autotune run FILE --cfg job` shows the file's values."""
    assert main(["run", str(file), "--cfg", "job"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    written = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert shown["candidate"].items() >= written["candidate"].items()
    assert shown["recipe"].items() >= written["recipe"].items()


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_the_commands_of_an_example_are_right(file: Path) -> None:
    """Every `autotune` command in its comments passes the check of the command line."""
    lines = [
        line.removeprefix("#").strip() for line in file.read_text(encoding="utf-8").splitlines() if line[:1] == "#"
    ]
    text = "\n".join(lines).replace("\\\n", " ")
    commands = [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("autotune ")]
    assert len(commands) == 2
    store_configs(run_file={})
    for command, *words in commands:
        assert command in ("run", "estimate", "search")
        check(command, [word for word in words if "=" in word], to_be_used=command != "run")
