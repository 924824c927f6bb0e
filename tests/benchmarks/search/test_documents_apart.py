"""benchmarks/search/documents_apart.py: models are small but whole, and a missing verdict has a reason."""

import json
from pathlib import Path

import pytest

from benchmarks.search import documents_apart
from benchmarks.search.documents_apart import SIZES, WINDOW, examine, main, shrunk, small_config


def test_a_configuration_is_as_deep_as_its_kinds_of_layers_need() -> None:
    """Six layers of Gemma 3, whose sixth is the first with full attention; its window is shorter than a document."""
    config = small_config("gemma3_text")
    assert config.layer_types == ["sliding_attention"] * 5 + ["full_attention"]
    assert config.num_hidden_layers == 6
    assert config.sliding_window == WINDOW < min(documents_apart.LENGTHS)


def test_sizes_shrink_and_never_grow() -> None:
    """Also those of a configuration inside another."""
    found = shrunk({"hidden_size": 4096, "num_experts": 2, "text_config": {"model_type": "t", "vocab_size": 50000}})
    assert found == {
        "hidden_size": SIZES["hidden_size"],
        "num_experts": 2,
        "text_config": {"vocab_size": SIZES["vocab_size"]},
    }


def test_a_type_that_cannot_be_built_has_a_reason_and_no_verdict() -> None:
    """Reformer refuses its default configuration."""
    found = examine("reformer")
    assert found["apart"] is None
    assert "is_decoder" in found["why"]


def test_what_would_not_be_noticed_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison that mixed documents would pass proves nothing."""
    alike = {"logits_difference": 0.0, "loss_difference": 0.0, "mixed_difference": 0.0}
    monkeypatch.setattr(documents_apart, "compare", lambda model: alike)
    assert examine("gpt2")["apart"] is None


def test_rows_of_these_versions_are_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second call prints the same rows and examines nothing; a wrong type is refused."""
    words = ["--only", "gpt2", "--out", str(tmp_path / "rows.jsonl"), "--json"]
    assert main(words) == 0
    [row] = json.loads(capsys.readouterr().out)["rows"]
    assert (row["model_type"], row["apart"], row["class"]) == ("gpt2", True, "GPT2LMHeadModel")
    monkeypatch.setattr(documents_apart, "examine", None)
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == [row]
    assert main(["--only", "gtp2"]) == 2
