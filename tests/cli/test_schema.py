"""The published schemas say what the readers say."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import yaml
from jsonschema import Draft202012Validator

from autotune.cli.run_file import load_run_file
from autotune.cli.schema import SCHEMAS, run_schema, schema_of

PUBLISHED = Path(__file__).parents[2] / "docs" / "schema"


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_published_schema_is_the_one_that_the_dataclasses_give(name: str) -> None:
    """`python -m autotune.cli.schema docs/schema` writes the files anew after a change."""
    assert json.loads((PUBLISHED / name).read_text(encoding="utf-8")) == SCHEMAS[name]()


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_is_valid_itself(name: str) -> None:
    """Any validator can use the schemas."""
    Draft202012Validator.check_schema(SCHEMAS[name]())


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part."""

    kind: ClassVar[str] = "part"

    size: int
    """bytes"""


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A whole."""

    word: Literal["a", "b"]
    parts: tuple[Part, ...]
    pair: tuple[float, str] | None
    by_name: Mapping[str, float | None]
    anything: Any = None


def test_each_type_has_a_schema() -> None:
    """Words, lists, pairs, mappings, nested dataclasses and null are told apart; docstrings become descriptions."""
    part = {
        "type": "object",
        "description": "A part.",
        "properties": {"kind": {"const": "part"}, "size": {"type": "integer", "description": "bytes"}},
        "required": ["kind", "size"],
    }
    pair = {"type": "array", "prefixItems": [{"type": "number"}, {"type": "string"}], "minItems": 2, "maxItems": 2}
    assert schema_of(Whole, title="whole", closed=False) == {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "whole",
        "type": "object",
        "description": "A whole.",
        "properties": {
            "word": {"enum": ["a", "b"]},
            "parts": {"type": "array", "items": {"$ref": "#/$defs/Part"}},
            "pair": {"anyOf": [pair, {"type": "null"}]},
            "by_name": {"type": "object", "additionalProperties": {"type": ["number", "null"]}},
            "anything": {},
        },
        "required": ["word", "parts", "pair", "by_name"],
        "$defs": {"Part": part},
    }


@pytest.mark.parametrize(
    "text",
    [
        "model: ./dir\ndata: {path: rows.csv, columns: {question: q}}\n",
        "format: 1\nseed: 3\ndevice: cpu\nrecipe: {learning_rate: null, epochs: 2}\n",
        "candidate: {checkpointing: 'off', mixed_precision: 'no', max_length: 64}\n",
        "format: 2\n",
        "format: json\n",
        "seed: -2\n",
        "sede: 2\n",
        "recipe: {coverage: 1.5}\n",
        "recipe: {warmup_ratio: 1.0}\n",
        "recipe: {epochs: 0}\n",
        "recipe: {method: lorra}\n",
        "recipe: {epochs: null}\n",
        "recipe: {lora_target_modules: [q_proj, v_proj]}\n",
        "recipe: {lora_target_modules: q_proj}\n",
        "candidate: {tf32: perhaps}\n",
        "data: {path: rows.csv, columns: [q]}\n",
    ],
)
def test_the_schema_and_the_reader_of_run_files_agree(tmp_path: Path, text: str) -> None:
    """A file passes the schema exactly when `autotune run` finds nothing wrong with it."""
    file = tmp_path / "run.yaml"
    file.write_text(text)
    _, problems = load_run_file(file)
    assert Draft202012Validator(run_schema()).is_valid(yaml.safe_load(text)) == (problems == [])
