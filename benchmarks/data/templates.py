"""Are our tokens and labels those of TRL's own trainer, for each chat template and each form of row?

    python -m benchmarks.data.templates [--only TEMPLATE ...] [--out FILE] [--json]

The templates are all that TRL ships and those of shapes.py, with the tokenizer of `model=tiny`. Each form of row
(shapes.py) is written as JSON lines, as parquet and as an Arrow directory of `save_to_disk`. autotune reads and
tokenizes each of them as it does for a search, with labels on all tokens, on the assistant's messages alone, or, where
a row has a completion, on all of it instead of the completion. `SFTTrainer` gets the same rows as they are. A case is:

    equal      each row has TRL's tokens and labels, from all three kinds of file. Arguments of calls that are text may
               be written as a mapping, and the other way around, because a template takes one of the two
    rewritten  the template would drop the tools or the calls, so they are written as text, and it is said
    refused    autotune refuses the rows in words, and TRL raises or would train them otherwise (`why`)
    different  anything else: a fault
"""

import argparse
import contextlib
import json
import logging
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from autotune.data.source import locate_data, survey
from autotune.data.tokenization import TokenizationRequest, tokenize
from autotune.demo import TINY
from autotune.errors import UsageError
from benchmarks.command import Answer, add_out, command, say
from benchmarks.data.shapes import ROWS, SHAPES
from benchmarks.rows import RESULTS, Row, RowFile, versions

KINDS = ("jsonl", "parquet", "arrow")
LOSSES: Mapping[str, Mapping[str, bool | None]] = {
    "usual": {"assistant_only_loss": False, "completion_only_loss": None},
    "assistant": {"assistant_only_loss": True, "completion_only_loss": None},
    "whole": {"assistant_only_loss": False, "completion_only_loss": False},
}
ROLES = {"system": "system", "human": "user", "gpt": "assistant"}
STRINGS = ("text", "prompt and completion")  # forms to which a chat template does nothing
OUTCOMES = ("equal", "rewritten", "refused", "different")
Tokens = list[tuple[list[int], list[int]]]  # of each row: input_ids and labels


def options(parser: argparse.ArgumentParser) -> None:
    """Name the templates and the file of rows."""
    parser.add_argument("--only", nargs="+", metavar="TEMPLATE", help="such as qwen3 or llama-2")
    add_out(parser, RESULTS / "templates.jsonl")


def answer(arguments: argparse.Namespace) -> Answer:
    """Compare each template that has no row of these versions yet; return all rows, and cases by outcome."""
    import datasets

    datasets.disable_progress_bars()
    logging.disable(logging.WARNING)
    known = templates()
    if wrong := sorted({*(arguments.only or ())} - {*known}):
        raise UsageError(*(f"--only: got {each}, expected the name of a template" for each in wrong))
    file = RowFile(path=arguments.out, about={"versions": versions()})
    done = {row["template"] for row in file.own()}
    with tempfile.TemporaryDirectory() as folder:
        data = written(Path(folder))
        for name in arguments.only or known:
            if name not in done:
                row = file.add(compared(name, known[name], data, Path(folder)))
                say(f"{name}: " + ", ".join(f"{len(row[each])} {each}" for each in OUTCOMES))
    rows = file.own()
    counts = {each: sum(len(row[each]) for row in rows) for each in OUTCOMES}
    words = Counter(why for row in rows for why in row["refused"].values())
    return {"rows": rows, "templates": len(rows), "cases": sum(counts.values()), **counts, "why": dict(words)}


def templates() -> dict[str, str]:
    """Return the chat templates that TRL ships and those of shapes.py, by name."""
    import trl

    shipped = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
    return {**{path.stem: path.read_text(encoding="utf-8") for path in shipped}, **SHAPES}


def written(folder: Path) -> dict[str, dict[str, Path]]:
    """Write the rows of each form as files of each kind. Returns their places."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset

    found: dict[str, dict[str, Path]] = {}
    for number, (form, rows) in enumerate(ROWS.items()):
        lines, table, saved = (folder / f"{number}{suffix}" for suffix in (".jsonl", ".parquet", "-saved"))
        lines.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        pq.write_table(pa.Table.from_pylist(rows), table)
        Dataset(pa.Table.from_pylist(rows)).save_to_disk(str(saved))
        found[form] = dict(zip(KINDS, (lines, table, saved), strict=True))
    return found


def compared(name: str, template: str, data: Mapping[str, Mapping[str, Path]], folder: Path) -> Row:
    """Compare all cases of a template. Returns their names by outcome, and why they were refused."""
    model = folder / "model"
    shutil.copytree(TINY, model, dirs_exist_ok=True)
    (model / "chat_template.jinja").write_text(template, encoding="utf-8")
    row: Row = {"template": name, **{each: [] for each in OUTCOMES}, "refused": {}}
    for form, files in data.items():
        for loss, options in LOSSES.items():
            if (loss == "assistant" and form in STRINGS) or (loss == "whole" and "completion" not in form):
                continue
            outcome, why = compared_case(model, files, ROWS[form], options)
            case = f"{form}, {loss}"
            if outcome == "refused":
                row["refused"][case] = why
            else:
                row[outcome].append(f"{case}: {why}" if why else case)
    return row


def compared_case(
    model: Path, files: Mapping[str, Path], rows: Sequence[Mapping[str, Any]], options: Mapping[str, bool | None]
) -> tuple[str, str]:
    """Compare one form of row. Returns the outcome, and why where it is not equal."""
    try:
        ours = {kind: tokens_of(model, path, options) for kind, path in files.items()}
    except UsageError as error:
        with contextlib.suppress(Exception):
            of_trl(model, next(variants(rows)), options)
            return "refused", f"{shortened(error, model)} (TRL trains it)"
        return "refused", shortened(error, model)
    tokens, notes = ours[KINDS[0]]
    if unlike := [kind for kind in KINDS if ours[kind][0] != tokens]:
        return "different", f"from {', '.join(unlike)} than from {KINDS[0]}"
    if any("written as text" in note for note in notes):
        return "rewritten", ""
    errors = []
    for variant in variants(rows):
        try:
            theirs = of_trl(model, variant, options)
        except Exception as error:  # a template may raise anything
            errors.append(f"{type(error).__name__}: {error}")
            continue
        if tokens == theirs:
            return "equal", ""
    return "different", "; ".join(errors) or "other tokens or labels than TRL's"


def tokens_of(model: Path, data: Path, options: Mapping[str, Any]) -> tuple[Tokens, list[str]]:
    """Tokenize a file as autotune does. Returns the rows and the notes. Raises UsageError."""
    from datasets import load_from_disk

    source = locate_data(str(data), {}, lambda line: None)
    request = TokenizationRequest(
        model=str(model),
        vocabulary=10**6,
        source=source,
        survey=survey(source, lambda line: None),
        **options,
    )
    with tempfile.TemporaryDirectory() as out:
        tokenize(request, Path(out))
        rows = load_from_disk(f"{out}/rows")
        found = list(zip(rows["input_ids"], rows["labels"], strict=True))
        return found, json.loads((Path(out) / "facts.json").read_text(encoding="utf-8"))["notes"]


def of_trl(model: Path, rows: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> Tokens:
    """Give the rows to SFTTrainer as they are. Returns what it trains. Raises what it raises."""
    from datasets import Dataset, Features, Json, List, Value
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    def kind(value: Any) -> Any:
        return Value("string") if isinstance(value, str) else List(Json()) if isinstance(value, list) else Json()

    features = Features({name: kind(value) for name, value in rows[0].items()})
    small = LlamaConfig(vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SFTTrainer(
            model=LlamaForCausalLM(small),
            args=SFTConfig(output_dir=scratch, use_cpu=True, bf16=False, report_to="none", max_length=None, **options),
            train_dataset=Dataset.from_list([dict(row) for row in rows], features=features),
            processing_class=AutoTokenizer.from_pretrained(model),
        )
        batch = trainer.train_dataset
        return list(zip(batch["input_ids"], batch["labels"], strict=True))


def variants(rows: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """Yield the rows as they are, then with arguments of calls as mappings, then with them as text.

    Conversations of ShareGPT have the usual names of roles: TRL renames their keys alone, and no template knows `gpt`.
    """
    rows = [
        {"messages": [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]}
        if "conversations" in row
        else row
        for row in rows
    ]
    yield rows
    for convert in (lambda given: json.loads(given) if isinstance(given, str) else given, as_text):
        changed = json.loads(json.dumps(list(rows)))
        for row in changed:
            for message in (message for part in row.values() if isinstance(part, list) for message in part):
                for call in message.get("tool_calls", ()):
                    call["function"]["arguments"] = convert(call["function"]["arguments"])
        yield changed


def as_text(given: Any) -> Any:
    """Write arguments of a call as JSON text."""
    return given if isinstance(given, str) else json.dumps(given)


def shortened(error: UsageError, model: Path) -> str:
    """Return the first problem without the places of this run's files."""
    said = error.problems[0].replace(str(model), "MODEL")
    return said.partition(": ")[2] if said.startswith(tuple("0123456789")) else said


main = command(__doc__, answer, options)

if __name__ == "__main__":
    sys.exit(main())
