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
from autotune.core.decode import kind_of
from autotune.files import write_json
from autotune.formats import RESULT_FORMAT, RUN_FORMAT
from autotune.search.result import Result

DRAFT = "https://json-schema.org/draft/2020-12/schema"
PLAIN: Mapping[Any, str] = {int: "integer", float: "number", bool: "boolean", str: "string", type(None): "null"}


def run_schema() -> dict[str, Any]:
    """The schema of `run.yaml`. Nothing is required, because the command line can give what the file leaves out."""
    schema = schema_of(RunSettings, title="run.yaml of autotune", closed=True)
    keys = schema["properties"]
    keys["format"] = {"const": RUN_FORMAT, "description": "number of this file's format; files without it have 1"}
    for group in ("model", "data"):  # `model: PATH` is short for `model: {path: PATH}`
        keys[group] = {"anyOf": [{"type": "string"}, keys[group]]}
    return schema


def result_schema() -> dict[str, Any]:
    """The schema of `result.json`. The file may have other keys too, because a newer version may add some."""
    schema = schema_of(Result, title="result.json of autotune", closed=False)
    schema["properties"]["format"] |= {"const": RESULT_FORMAT}
    return schema


SCHEMAS = {"run.schema.json": run_schema, "result.schema.json": result_schema}


def write_schemas(directory: Path) -> None:
    """Write every schema into a directory."""
    for name, schema in SCHEMAS.items():
        write_json(directory / name, schema())


def schema_of(cls: type[Any], *, title: str, closed: bool) -> dict[str, Any]:
    """The schema of a file that holds one dataclass. closed: its reader refuses a key that is no field."""
    writer = _Writer(closed=closed, module=cls.__module__)
    return {"$schema": DRAFT, "title": title, **writer.object(cls), "$defs": writer.definitions}


class _Writer:
    """Writes schemas of types. Dataclasses inside others become definitions, each under the name of its class.

    module: the docstrings of its classes become descriptions. Those of other modules are written for their callers.
    """

    def __init__(self, *, closed: bool, module: str) -> None:
        self.definitions: dict[str, dict[str, Any]] = {}
        self._closed = closed
        self._module = module

    def object(self, cls: type[Any]) -> dict[str, Any]:
        hints, docs = get_type_hints(cls), field_docs(cls)
        properties = {}
        for item in fields(cls):
            found = self.value(hints[item.name])
            if (limit := item.metadata.get("limit")) is not None:
                found |= _limited(limit, optional="null" in found["type"])
            if item.name in docs:
                found["description"] = docs[item.name]
            properties[item.name] = found
        required = [item.name for item in fields(cls) if default_of(item) is MISSING]
        if (kind := kind_of(cls)) is not None:
            properties, required = {"kind": {"const": kind}, **properties}, ["kind", *required]
        schema: dict[str, Any] = {"type": "object"}
        if cls.__module__ == self._module:
            schema["description"] = inspect.cleandoc(cls.__doc__ or "")
        schema["properties"] = properties
        if required:
            schema["required"] = required
        if self._closed:
            schema["additionalProperties"] = False
        return schema

    def value(self, hint: Any) -> dict[str, Any]:
        origin, arguments = get_origin(hint), get_args(hint)
        if hint is Any:
            return {}
        if hint in PLAIN:
            return {"type": PLAIN[hint]}
        if is_dataclass(hint):
            cls = cast("type[Any]", hint)
            if cls.__name__ not in self.definitions:
                self.definitions[cls.__name__] = self.object(cls)
            return {"$ref": f"#/$defs/{cls.__name__}"}
        if isinstance(hint, type) and issubclass(hint, Enum):
            return {"enum": [member.name for member in hint]}
        if origin is Literal:
            return {"enum": list(arguments)}
        if origin in (Union, types.UnionType):
            return _choice([self.value(argument) for argument in arguments])
        if origin is tuple and arguments[-1] is not Ellipsis:
            parts = [self.value(argument) for argument in arguments]
            return {"type": "array", "prefixItems": parts, "minItems": len(parts), "maxItems": len(parts)}
        if origin in (list, tuple):
            return {"type": "array", "items": self.value(arguments[0])}
        if origin in (dict, Mapping):
            return {"type": "object", "additionalProperties": self.value(arguments[1])}
        raise TypeError(f"no schema is known for {hint}")


def _choice(schemas: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One of several schemas. Those that only name a type become a list of names."""
    if all(schema.keys() == {"type"} for schema in schemas):
        return {"type": [schema["type"] for schema in schemas]}
    return {"anyOf": list(schemas)}


def _limited(limit: Limit, *, optional: bool) -> dict[str, Any]:
    """A limit in the words of JSON schema."""
    if limit.named:
        return {"minItems": 1}
    if limit.choices:
        return {"enum": [*limit.choices, None] if optional else list(limit.choices)}
    words = {
        "minimum": limit.at_least,
        "exclusiveMinimum": limit.above,
        "maximum": limit.at_most,
        "exclusiveMaximum": limit.below,
    }
    return {word: value for word, value in words.items() if value is not None}


if __name__ == "__main__":
    write_schemas(Path(sys.argv[1]))
