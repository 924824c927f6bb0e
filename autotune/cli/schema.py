"""JSON schemas (draft 2020-12) of the files that other programs read, written from the dataclasses of those files.

`python -m autotune.cli.schema docs/schema` writes them. The product reads the files with the same dataclasses, so the
readers and the schemas agree.
"""

import inspect
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from autotune.cli.keys import default_of, field_docs
from autotune.cli.limits import Limit
from autotune.cli.settings import RunSettings
from autotune.files import write_json
from autotune.formats import RUN_FORMAT

DRAFT = "https://json-schema.org/draft/2020-12/schema"
PLAIN: Mapping[Any, str] = {int: "integer", float: "number", bool: "boolean", str: "string", type(None): "null"}


def run_schema() -> dict[str, Any]:
    """The schema of `run.yaml`. Nothing is required, because the command line can give what the file leaves out."""
    schema = object_schema(RunSettings, closed=True)
    keys = schema["properties"]
    keys["format"] = {"const": RUN_FORMAT, "description": "number of this file's format; files without it have 1"}
    for group in ("model", "data"):  # `model: PATH` is short for `model: {path: PATH}`
        keys[group] = {"anyOf": [{"type": "string"}, keys[group]]}
    return {"$schema": DRAFT, "title": "run.yaml of autotune", **schema}


def object_schema(cls: type[Any], *, closed: bool) -> dict[str, Any]:
    """The schema of a dataclass. closed: its readers refuse a key that it does not name."""
    hints, docs = get_type_hints(cls), field_docs(cls)
    properties = {}
    for item in fields(cls):
        found = value_schema(hints[item.name], closed=closed)
        if (limit := item.metadata.get("limit")) is not None:
            found |= _limited(limit, optional="null" in found["type"])
        if item.name in docs:
            found["description"] = docs[item.name]
        properties[item.name] = found
    schema = {"type": "object", "description": inspect.cleandoc(cls.__doc__ or ""), "properties": properties}
    if required := [item.name for item in fields(cls) if default_of(item) is MISSING]:
        schema["required"] = required
    return {**schema, "additionalProperties": False} if closed else schema


def value_schema(hint: Any, *, closed: bool) -> dict[str, Any]:
    """The schema of a type: a plain one, words, a list, a mapping, a dataclass, or a choice between such."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return {}
    if hint in PLAIN:
        return {"type": PLAIN[hint]}
    if is_dataclass(hint):
        return object_schema(cast("type[Any]", hint), closed=closed)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {"enum": [member.name for member in hint]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        return _choice([value_schema(argument, closed=closed) for argument in arguments])
    if origin is tuple and arguments[-1] is not Ellipsis:
        parts = [value_schema(argument, closed=closed) for argument in arguments]
        return {"type": "array", "prefixItems": parts, "minItems": len(parts), "maxItems": len(parts)}
    if origin in (list, tuple, Sequence):
        return {"type": "array", "items": value_schema(arguments[0], closed=closed)}
    if origin in (dict, Mapping):
        return {"type": "object", "additionalProperties": value_schema(arguments[1], closed=closed)}
    raise TypeError(f"no schema is known for {hint}")


def _choice(schemas: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One of several types; those that are only a name are written as a list of names."""
    if all(schema.keys() == {"type"} for schema in schemas):
        return {"type": [schema["type"] for schema in schemas]}
    return {"anyOf": list(schemas)}


def _limited(limit: Limit, *, optional: bool) -> dict[str, Any]:
    """A limit in the words of JSON schema."""
    if limit.choices:
        return {"enum": [*limit.choices, None] if optional else list(limit.choices)}
    words = {
        "minimum": limit.at_least,
        "exclusiveMinimum": limit.above,
        "maximum": limit.at_most,
        "exclusiveMaximum": limit.below,
    }
    return {word: value for word, value in words.items() if value is not None}


SCHEMAS = {"run.schema.json": run_schema}


def write_schemas(directory: Path) -> None:
    """Write every schema into a directory."""
    for name, schema in SCHEMAS.items():
        write_json(directory / name, schema())


if __name__ == "__main__":
    write_schemas(Path(sys.argv[1]))
