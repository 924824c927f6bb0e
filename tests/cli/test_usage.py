"""Mistakes on a command line: all of them at once, each with what was expected."""

from pathlib import Path
from typing import Any

import pytest

from autotune.cli.settings import group_words, store_configs
from autotune.cli.usage import check, twice_named
from autotune.errors import UsageError

NEEDED = ["model=tiny", "data=demo"]
MODELS = f"expected {group_words('model')}"


@pytest.fixture(autouse=True)
def _configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store_configs(run_file={})


def problems_of(*overrides: str, command: str = "search", **flags: Any) -> list[str]:
    """What is wrong with a command line; nothing when it passes."""
    try:
        check(command, overrides, **flags)
    except UsageError as error:
        return list(error.problems)
    return []


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("seeds=3", "seeds=3: no such key; the nearest is seed"),
        ("epochs=3", "epochs=3: no such key; the nearest is recipe.epochs"),
        ("recipie.epoch=3", "recipie.epoch=3: no such key; the nearest is recipe.epochs"),
        ("bugdet=short", "bugdet=short: no such key; the nearest is budget"),
        ("+zzz=1", "zzz=1: no such key"),
        ("recipe.epochs=abc", "recipe.epochs=abc: expected a number, above 0"),
        ("recipe.epochs=null", "recipe.epochs=null: expected a number, above 0"),
        ("recipe.coverage=1.5", "recipe.coverage=1.5: expected a number, above 0 and at most 1"),
        ("recipe.max_steps=2.5", "recipe.max_steps=2.5: expected a whole number, at least 1, or null"),
        ("recipe.effective_batch_size=0", "recipe.effective_batch_size=0: expected a whole number, at least 1"),
        (
            "recipe.lora_target_modules=q",
            "recipe.lora_target_modules=q: expected a list such as [a,b], with at least one name",
        ),
        (
            "recipe.method=lorra",
            "recipe.method=lorra: expected one of full, lora, qlora, lora_int8, or null; the nearest is lora",
        ),
        ("fidelity=closs", "fidelity=closs: expected one of exact, close, free; the nearest is close"),
        ("refresh=perhaps", "refresh=perhaps: expected true or false"),
        ("data.columns=q", "data.columns=q: expected a mapping such as '{a: b}'"),
        ("candidate=3", "candidate=3: candidate holds keys, such as candidate.max_length"),
        ("candidate={max_lenght: 3}", "candidate.max_lenght=3: no such key; the nearest is candidate.max_length"),
        ("sampler=tp", "sampler=tp: expected gp, grid, random, roofline, tpe; the nearest is tpe"),
        ("recipe={epochs: 3}", "recipe={'epochs': 3}: expected default, small_data"),
        ("hardware=rtx_409", f"hardware=rtx_409: expected {group_words('hardware')}; the nearest is rtx_4090"),
        ("~seed", "~seed: only a group can be left out"),
        ("seed=1,2", "seed=1,2: several values need -m; a list is [a,b], a text with commas 'a,b'"),
        ("seed=a(b", "seed=a(b: cannot be read; expected key=value, with quotes as in key='a (b)'"),
        ("tiny", "tiny: cannot be read; expected key=value, with quotes as in key='a (b)'"),
    ],
)
def test_a_mistake_says_what_was_expected(override: str, problem: str) -> None:
    """Each kind of mistake names the word, what belongs there, and the nearest right name where there is one."""
    assert problems_of(*NEEDED, override) == [problem]


def test_all_mistakes_come_together() -> None:
    """A wrong key, a wrong type, a wrong option and a missing group are one message."""
    assert problems_of("recipe.epohcs=3", "seed=x", "model=smolm2", "budget.trials=0") == [
        "recipe.epohcs=3: no such key; the nearest is recipe.epochs",
        "seed=x: expected a whole number, at least 0 and at most 4294967295",
        f"model=smolm2: {MODELS}; the nearest is smollm2",
        "budget.trials=0: expected a whole number, at least 2, or null",
        "data= is missing: expected demo, a hub id (owner/name) or a local path",
    ]


def test_what_is_missing_is_named_with_its_options() -> None:
    """Leaving model and data out is a mistake that names what they can be."""
    assert problems_of() == [
        f"model= is missing: {MODELS}",
        "data= is missing: expected demo, a hub id (owner/name) or a local path",
    ]


def test_nothing_is_missing_from_what_is_only_shown() -> None:
    """--cfg and --info need no model and no data."""
    assert problems_of(to_be_used=False) == []


@pytest.mark.parametrize(
    "overrides",
    [
        ["recipe.learning_rate=1e-4"],
        ["recipe.lora_target_modules=[q_proj,v_proj]"],
        ["candidate={max_length: 128, batching: random}"],
        ["candidate.pad_to_multiple_of=null"],
        ["experiment=demo", "hydra.verbose=true"],
        ["experiment=null"],
        ["~experiment"],
        ["recipe.max_steps=${recipe.lora_rank}"],
        ["out=runs/${hydra:job.num}"],
    ],
)
def test_right_words_pass(overrides: list[str]) -> None:
    """What Hydra and the settings allow is not refused."""
    assert problems_of(*NEEDED, *overrides) == []


@pytest.mark.parametrize(
    ("given", "hydra"),
    [
        ("model=Qwen/Qwen2.5-0.5B", ["~model", "model.path='Qwen/Qwen2.5-0.5B'"]),
        ("model=./dir", ["~model", "model.path='./dir'"]),
        ("data=/x/y.jsonl", ["~data", "data.path='/x/y.jsonl'"]),
        ("data=rows.csv", ["~data", "data.path='rows.csv'"]),
        ("hardware=t4.json", ["~hardware", "hardware.file='t4.json'"]),
        ("model=tiny", ["model=tiny"]),
        ("+recipe.epochs=3", ["recipe.epochs=3"]),
        ("experiment=null", ["~experiment"]),
        ("data.columns={question: q}", ["++data.columns={question: q}"]),
        ("data.columns.question=q", ["++data.columns.question=q"]),
    ],
)
def test_words_are_rewritten_for_hydra(given: str, hydra: list[str]) -> None:
    """Free forms, new names in a mapping and a needless + become what Hydra takes."""
    others = [word for word in NEEDED if word.partition("=")[0] != given.partition("=")[0]]
    assert check("search", [given, *others])[: len(hydra)] == hydra


def test_a_path_may_hold_anything(tmp_path: Path) -> None:
    """A path that exists is taken as it is, also with what means something in Hydra's grammar."""
    odd = tmp_path / "it's (1), a=b.jsonl"
    odd.touch()
    assert check("search", ["model=tiny", f"data={odd}"])[1:] == [
        "~data",
        f"data.path='{odd}'".replace("it's", r"it\'s"),
    ]


def test_an_option_wins_over_a_directory_of_its_name(tmp_path: Path) -> None:
    """A folder called `tiny` in the working directory does not change what model=tiny means."""
    (tmp_path / "tiny").mkdir()
    assert check("search", NEEDED) == NEEDED


def test_a_sweep_over_free_forms() -> None:
    """In a multirun several free forms stay one sweep."""
    assert check("search", ["model=Qwen/A,./b", "data=demo"], multirun=True)[:2] == [
        "~model",
        "model.path='Qwen/A','./b'",
    ]


def test_every_value_of_a_sweep_is_judged() -> None:
    """A mistake in the last value of a sweep is found before the first job runs."""
    words = ["sampler=tpe,grd", "recipe.epochs=1,2,x", "model=tiny,./dir", "data=demo", "seed=range(-1,3)"]
    assert problems_of(*words, multirun=True) == [
        "sampler=grd: expected gp, grid, random, roofline, tpe; the nearest is grid",
        "recipe.epochs=x: expected a number, above 0",
        "model=tiny,./dir: options and free forms cannot be mixed in one sweep",
        "seed=-1: expected a whole number, at least 0 and at most 4294967295",
    ]


def test_groups_of_another_command_are_refused() -> None:
    """A probe has no recipe and no model, though conf/ has."""
    assert problems_of("recipe=default", "model=.", command="probe") == [
        "recipe=default: probe takes no recipe",
        "model=.: probe takes no model",
    ]


def test_options_of_the_users_own(tmp_path: Path) -> None:
    """--config-dir adds options; a preset of theirs is judged by the same rules, and only when it is used."""
    folder = tmp_path / "experiment"
    folder.mkdir()
    (folder / "mine.yaml").write_text("# @package _global_\nrecipe:\n  epochs: 7\n")
    (folder / "wrong.yaml").write_text("# @package _global_\nrecipe:\n  epochs: -7\nseed: -3\n")
    assert problems_of(*NEEDED, "experiment=mine", config_dir=str(tmp_path)) == []
    assert problems_of(*NEEDED, "experiment=mine", f"hydra.searchpath=[file://{tmp_path}]") == []
    assert problems_of(*NEEDED, "experiment=wrong", config_dir=str(tmp_path)) == [
        "recipe.epochs=-7.0: must be above 0",
        "seed=-3: must be at least 0 and at most 4294967295",
    ]
    assert problems_of(*NEEDED, config_dir="nowhere") == ["--config-dir nowhere: no such directory"]


def test_what_only_hydra_sees_is_reported() -> None:
    """A mistake in Hydra's own keys comes in one line."""
    (problem,) = problems_of(*NEEDED, "hydra.nothing=1")
    assert problem.startswith("Could not override 'hydra.nothing'.")


def test_a_directory_with_the_name_of_an_option_is_pointed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The option counts, as always; how to name the directory is said."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    (tmp_path / "mine").mkdir()
    assert twice_named(["model=tiny", "data=demo", "out=tiny"]) == [
        "model=tiny is an option of autotune; what is called tiny here is model=./tiny"
    ]
    assert twice_named(["model=./tiny", "model=mine"]) == []


@pytest.mark.parametrize("name", ["mine", "odd (x)"])
def test_a_directory_may_have_its_text_backbone_asked_for(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind any name that a directory here has."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    found = check("search", [f"model={name}:text", "data=demo"])
    assert found[0] == "~model"
    assert f"{name}:text" in found[1]
