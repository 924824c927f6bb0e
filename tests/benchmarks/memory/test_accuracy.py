"""The benchmark on public measurements takes any file of its shape, and says what is wrong with any other."""

import json
from pathlib import Path
from typing import Any

import pytest

from autotune.core.knobs import VALUES
from autotune.core.step.profile import Profile
from benchmarks.memory import accuracy, points
from benchmarks.rows import read
from tests.core.step.test_profile import step

ROW = {
    "id": "a row",
    "tier": "A",
    "n_gpus": 1,
    "status": "ok",
    "peak_alloc_bytes": 2**30,
    "model": "mine",
    "gpu": "Tesla T4",
    "method": "full",
    "seq_len": 128,
    "micro_batch": 2,
    "gradient_checkpointing": False,
    "attention": "sdpa",
    "dtype": "bf16",
    "optimizer": "adamw_torch",
}
MODEL = {"model_type": "llama", "num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 96, "vocab_size": 1000}


def test_every_line_that_is_no_row_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One list of problems and exit code 2, not a traceback for the first."""
    file, models = tmp_path / "points.jsonl", tmp_path / "models.json"
    file.write_text(f'{json.dumps(ROW)}\n{{"id": \n\n[1]\n{{"tier": "A"}}\n')
    models.write_text('{"mine": 3}')
    assert accuracy.main(["--points", str(file), "--models", str(models), "--json"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    places = [f"{file}:2", f"{file}:4", f"{file}:5", f"{models}"]
    assert [place in line for place, line in zip(places, lines, strict=True)] == [True] * 4


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both are named at once."""
    assert accuracy.main(["--points", str(tmp_path / "no"), "--models", str(tmp_path)]) == 2
    assert [line.count("cannot be read") for line in capsys.readouterr().err.splitlines()] == [1, 1]


def test_a_row_that_cannot_be_predicted_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says why, and the others are predicted all the same; what a row does not have is unknown."""
    file, models = tmp_path / "points.jsonl", tmp_path / "models.json"
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"dtype": None, "method": None}, "not given: method, dtype"),
        ({"model": "another"}, "architecture of another is neither given nor in the catalogue"),
        ({"gpu": "Tesla K80"}, "Tesla K80 is not in the catalogue"),
        ({"gpu": "NVIDIA RTX"}, "NVIDIA RTX may be any of "),
        ({"gpu": "NVIDIA"}, "NVIDIA is not in the catalogue"),
        ({"optimizer": "lion_8bit"}, "optimizer lion_8bit is not known"),
        ({"optimizer": "adamw_torch_fused (offloaded)"}, "optimizer adamw_torch_fused (offloaded) is not known"),
        ({"model": "unknown type"}, "architecture of unknown type cannot be built"),
        ({"model": "empty"}, "cannot be traced: ValueError: a model without layers"),
    ]
    rows = [{**ROW, **row, "id": why} for row, why in wrong]
    file.write_text("\n".join(json.dumps(each) for each in (*rows, ROW)))
    unbuildable = {"unknown type": {**MODEL, "model_type": "lama"}, "empty": {**MODEL, "num_hidden_layers": 0}}
    models.write_text(json.dumps({"mine": MODEL, **unbuildable}))
    out = tmp_path / "rows.jsonl"
    assert accuracy.main(["--points", str(file), "--models", str(models), "--out", str(out), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [skipped["id"] for skipped in answer["skipped"]] == [why for _, why in wrong]
    assert all(skipped["id"] in skipped["why"] for skipped in answer["skipped"])
    [kept] = read(out)
    assert answer["rows"] == [{name: value for name, value in kept.items() if name not in ("at", "versions")}]


def test_rows_on_both_sides_of_a_window_have_a_profile_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes of one regime share theirs; the key is the request that is traced."""
    traced: list[Any] = []

    def trace(request: Any, **_: Any) -> Profile:
        traced.append(request)
        return step(5)

    monkeypatch.setattr(points, "trace", trace)
    mistral = {**MODEL, "model_type": "mistral", "num_hidden_layers": 9, "sliding_window": 256}
    profiles: dict[str, Profile] = {}
    for length, rows in ((128, 2), (192, 3), (256, 2), (512, 4)):
        values = {**ROW, "seq_len": length, "micro_batch": rows}
        accuracy.predict(points.read(values, {"mine": mistral}), values, profiles)
    assert [request.beyond_window for request in traced] == [False, True]


@pytest.mark.parametrize(
    ("name", "capability"),
    [
        ("Tesla T4", (7, 5)),
        ("A100-80GB", (8, 0)),
        ("A100-SXM4-80GB", (8, 0)),
        ("NVIDIA A100 80GB PCIe", (8, 0)),
        ("A10", (8, 6)),
        ("nvidia l40s", (8, 9)),
        ("L4", (8, 9)),
        ("RTX 3090", (8, 6)),
        ("RTX4090", (8, 9)),
        ("NVIDIA GeForce RTX 4080", (8, 9)),
        ("H100", (9, 0)),
        ("NVIDIA H100 80GB HBM3", (9, 0)),
    ],
)
def test_a_gpu_is_found_by_what_people_call_it(name: str, capability: tuple[int, int]) -> None:
    """With or without the vendor, in any case and punctuation; which H100 it is does not matter here."""
    found = points.gpu(name)
    assert found.capability == capability
    assert points.gpu_words(name) & points.gpu_words(found.name)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        *((each, each) for each in VALUES["optimizer"]),
        ("adamw_torch (foreach)", "adamw_torch"),
        ("AdamW (torch, foreach default)", "adamw_torch"),
        ("torch AdamW fp32 states (foreach default)", "adamw_torch"),
    ],
)
def test_an_optimizer_is_found_by_what_people_call_it(name: str, known: str) -> None:
    """Ours by their names, and torch's AdamW in words."""
    assert points.optimizer_of(name) == known


def test_a_model_that_is_not_given_is_the_catalogue_s() -> None:
    """So that rows of well-known models need no file; what is given goes first."""
    values = {**ROW, "model": "mistralai/Mistral-7B-v0.1"}
    assert points.read(values, {}).layers == 32
    assert points.read(values, {values["model"]: MODEL}).layers == 1


def test_layers_of_a_nested_configuration_are_those_of_its_text() -> None:
    """A model of images too counts others apart."""
    nested = {"model_type": "gemma3", "text_config": {**MODEL, "model_type": "gemma3_text", "num_hidden_layers": 3}}
    assert points.read(ROW, {"mine": nested}).layers == 3
