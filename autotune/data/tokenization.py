"""Tokenize a dataset exactly as TRL does, and keep the rows.

The rows are those of a real `SFTTrainer` that is built around a throw-away model, so chat template, end tokens and
masks are TRL's own. describe.py runs this in a process of its own: importing TRL takes seconds and, through
bitsandbytes, claims memory on a GPU that the trials need. Leaves out truncation and packing, which belong to a
candidate.
"""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotune.core.lengths import Spans
from autotune.core.units import count_of
from autotune.data.endings import notes_on_endings
from autotune.data.forms import FOLLOW_THE_TOKENIZER, Arguments, BadRow, Dialect, TrlForm
from autotune.data.marks import IGNORED, Loss, apply_marks, marks_of
from autotune.data.source import PROBLEMS_SHOWN, Problems, Source, Survey, converted_rows
from autotune.errors import UsageError, first_line
from autotune.machine.host import count_cores

ROWS_PER_PROCESS = 5_000  # fewer rows are tokenized before another process has started
MOST_PROCESSES = 16
IDENTITY = "call00001"  # nine letters and digits, which Mistral's templates demand


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizationRequest:
    """The rows to tokenize, and how.

    model: what `from_pretrained` takes. vocabulary: rows of the model's embedding.
    indices: rows to keep, ascending; None keeps all.
    """

    model: str
    vocabulary: int
    source: Source
    survey: Survey
    assistant_only_loss: bool
    completion_only_loss: bool | None
    indices: NDArray[np.int64] | None = None


def tokenize(request: TokenizationRequest, out: Path) -> None:
    """Write `rows/` (Arrow: input_ids, labels, untruncated), `lengths.npz` and `facts.json`.

    lengths.npz: tokens of each row, and where its labels lie (`Spans`).

    Rows without a label that reaches the loss are left out, as TRL leaves them out when it truncates: a step of only
    such rows would divide by zero. Raises UsageError when TRL cannot tokenize the rows, or none is left.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(request.model, trust_remote_code=False)
    has_template = tokenizer.chat_template is not None
    arguments = arguments_taken(tokenizer) if has_template else None
    dialect = Dialect(chat=has_template, tools=arguments is not None, arguments=arguments or "mapping")
    chat = dialect.chat if request.survey.form.name in FOLLOW_THE_TOKENIZER else request.survey.chat
    if problems := _problems_of(request, tokenizer, chat):
        raise UsageError(*problems)
    with tempfile.TemporaryDirectory(prefix="autotune-") as scratch:
        dataset = _dataset(request, dialect, chat, scratch)
        rows = _trl_rows(request, tokenizer, dataset, dialect, scratch)
        if request.survey.marked:
            rows = _with_marks(request, rows, dialect)
        tokens, labels, largest = measure(rows)
        if problems := _without_embedding(request, tokenizer, largest):
            raise UsageError(*problems)
        learned = np.flatnonzero(labels)
        if not len(learned):
            raise UsageError(
                f"{request.source.name}: no token of any row reaches the loss "
                f"(assistant_only_loss={request.assistant_only_loss}, "
                f"completion_only_loss={request.completion_only_loss})"
            )
        if len(learned) < len(labels):
            rows = rows.select(learned)
        rows.save_to_disk(str(out / "rows"))
        spans = label_spans(rows)
        notes = [
            *_notes(request, dialect, chat, unlearned=len(labels) - len(learned)),
            *notes_on_endings(request.model, tokenizer, rows, chat=chat),
        ]
    np.savez(out / "lengths.npz", tokens=tokens[learned], counts=spans.counts, starts=spans.starts, ends=spans.ends)
    facts = {
        "form": request.survey.trl_form,
        "rows_in_file": len(request.survey.characters),
        "rows_tokenized": len(labels),
        "notes": notes,
    }
    (out / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


def _without_embedding(request: TokenizationRequest, tokenizer: Any, largest: int) -> list[str]:
    """Name the tokens that can reach the model, and for which it has no embedding. largest: of all rows."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id  # as TRL pads
    reaching = {number: what for number, what in ((largest, "the rows hold"), (pad, "rows are padded with")) if number}
    return [
        f"{request.model}: {what} token {number} ({tokenizer.convert_ids_to_tokens(number)!r}), but the model has only "
        f"{request.vocabulary:,} embeddings; take the tokenizer that belongs to it, or add embeddings "
        "(resize_token_embeddings) and save the model anew"
        for number, what in reaching.items()
        if number >= request.vocabulary
    ]


def arguments_taken(tokenizer: Any) -> Arguments | None:
    """Find how a chat template takes the arguments of calls. None if it drops calls, their arguments or their results.

    TRL's `supports_tool_calling` asks the same, without identities and for mappings alone.
    """
    for kind, arguments in (("mapping", {"key_b9d4": "value_d6e7"}), ("text", '{"key_b9d4": "value_d6e7"}')):
        call = {"id": IDENTITY, "type": "function", "function": {"name": "name_a8f3", "arguments": arguments}}
        messages = [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "name": "name_a8f3", "tool_call_id": IDENTITY, "content": "content_c4f9"},
        ]
        try:
            rendered = tokenizer.apply_chat_template(messages, tokenize=False)
        except Exception:  # a template may raise anything
            continue
        if all(part in rendered for part in ("name_a8f3", "key_b9d4", "value_d6e7", "content_c4f9")):
            return kind  # type: ignore[return-value]
    return None


def _notes(request: TokenizationRequest, dialect: Dialect, chat: bool, *, unlearned: int) -> Iterator[str]:
    """Say what of the data is left out or written in another way, with counts."""
    survey, name = request.survey, request.source.name
    if survey.unused:
        columns = ", ".join(f"{column} ({count_of(count, 'row')})" for column, count in survey.unused.items())
        yield f"columns of {name} that are not used: {columns}"
    if survey.with_tools and chat and not dialect.tools:
        yield (
            f"tools and calls of {name} are written as text, in the words of Qwen2.5, because the chat template of "
            f"{request.model} would drop them: {count_of(survey.with_tools, 'row')}"
        )
    if unlearned:
        yield f"left out of {name}, because no token of them reaches the loss: {count_of(unlearned, 'row')}"


def _with_marks(request: TokenizationRequest, rows: Any, dialect: Dialect) -> Any:
    """Take the messages that are marked as not learned out of the labels. Raises UsageError if that cannot be done."""
    loss = Loss(
        completion_only=request.completion_only_loss is not False,  # TRL's default is true where there is a completion
        assistant_only=request.assistant_only_loss,
    )
    kept = None if request.indices is None else set(request.indices.tolist())
    converted = converted_rows(request.source, request.survey.form, dialect)
    chosen = [(where, row) for number, (where, row) in enumerate(converted) if kept is None or number in kept]
    labels, problems = [], Problems()
    for (where, row), before in zip(chosen, rows["labels"], strict=True):
        try:
            labels.append(apply_marks(before, marks_of(row), loss))
        except BadRow as bad:
            problems.add(where, str(bad))
    if problems:
        raise UsageError(*problems.lines())
    return rows.remove_columns("labels").add_column("labels", labels, feature=rows.features["labels"])


def measure(rows: Any) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Count the tokens and the labels that reach the loss of every row, shapes (N,), and find the largest token."""
    tokens, labels, largest = [], [], 0
    for batch in rows.with_format("arrow").iter(batch_size=10_000):
        ids, marks = (batch.column(name).combine_chunks() for name in ("input_ids", "labels"))
        counts = ids.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
        ends = np.cumsum(counts)
        starts = ends - counts
        learned = marks.flatten().to_numpy(zero_copy_only=False) != IGNORED
        learned[starts[counts > 0]] = False  # nothing predicts a row's first token
        sums = np.concatenate([[0], np.cumsum(learned)])
        tokens.append(counts)
        labels.append((sums[ends] - sums[starts]).astype(np.int64))
        largest = max(largest, int(ids.flatten().to_numpy(zero_copy_only=False).max(initial=0)))
    return np.concatenate(tokens), np.concatenate(labels), largest


def label_spans(rows: Any) -> Spans:
    """Find where the labels of every row lie."""
    counts, starts, ends = [], [], []
    for batch in rows.with_format("arrow").iter(batch_size=10_000):
        marks = batch.column("labels").combine_chunks()
        tokens = marks.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
        has_label = marks.flatten().to_numpy(zero_copy_only=False) != IGNORED
        row = np.repeat(np.arange(len(tokens)), tokens)
        place = np.arange(len(row)) - (tokens.cumsum() - tokens)[row]
        joins = has_label[1:] & has_label[:-1] & (row[1:] == row[:-1])  # a position to the one before it
        begins, stops = has_label & ~np.append(False, joins), has_label & ~np.append(joins, False)
        counts.append(np.bincount(row[begins], minlength=len(tokens)))
        starts.append(place[begins])
        ends.append(place[stops] + 1)
    return Spans(counts=np.concatenate(counts), starts=np.concatenate(starts), ends=np.concatenate(ends))


def _problems_of(request: TokenizationRequest, tokenizer: Any, chat: bool) -> list[str]:
    """List, in the words of the recipe, what TRL would refuse, or would silently do in another way."""
    from trl.chat_template_utils import get_training_chat_template, has_generation_markers

    form, name = request.survey.trl_form, request.source.name
    problems = []
    if chat and tokenizer.chat_template is None:
        problems.append(
            f"{name}: holds messages, and the tokenizer of {request.model} has no chat template; take the "
            "instruction-tuned version of the model, or data as text or as prompt and completion strings"
        )
    if request.completion_only_loss and form != "prompt_completion":
        problems.append(
            f"recipe.completion_only_loss=true: {name} is {form}, which has no completion (TRL would learn every "
            "token); recipe.assistant_only_loss=true learns the answers in messages"
        )
    if request.assistant_only_loss and not chat:
        problems.append(f"recipe.assistant_only_loss=true: {name} is {form} in strings, expected messages")
    elif request.assistant_only_loss and not problems and not has_generation_markers(tokenizer.chat_template):
        try:
            get_training_chat_template(tokenizer)
        except ValueError:
            problems.append(
                f"recipe.assistant_only_loss=true: the chat template of {request.model} marks no answers "
                "({% generation %}), and TRL knows no version of it that does; add the marks, or leave it false"
            )
    return problems


def _dataset(request: TokenizationRequest, dialect: Dialect, chat: bool, scratch: str) -> Any:
    """Write the rows in TRL's own form, as a dataset on disk."""
    from datasets import Dataset, Features, Json, List, Value

    # Messages are JSON. As Arrow structs, every message would get the keys of all others, filled with nulls.
    columns: dict[TrlForm, tuple[str, ...]] = {
        "text": ("text",),
        "prompt_completion": ("prompt", "completion"),
        "messages": ("messages",),
    }
    features = {name: List(Json()) if chat else Value("string") for name in columns[request.survey.trl_form]}
    if "tools" in request.survey.extras and dialect.tools:
        features["tools"] = Value("string")
    if "chat_template_kwargs" in request.survey.extras:
        features["chat_template_kwargs"] = Json()
    blank: dict[str, Any] = {"tools": None, "chat_template_kwargs": {}}

    def rows() -> Any:
        for _, row in converted_rows(request.source, request.survey.form, dialect):
            yield {name: row.get(name, blank.get(name)) for name in features}

    try:
        dataset = Dataset.from_generator(rows, features=Features(features), cache_dir=scratch, fingerprint="rows")
    except Exception as error:
        raise error.__cause__ if isinstance(error.__cause__, UsageError) else error from None
    return dataset if request.indices is None else dataset.select(request.indices)


def _trl_rows(request: TokenizationRequest, tokenizer: Any, dataset: Any, dialect: Dialect, scratch: str) -> Any:
    """Make the columns input_ids and labels by a real SFTTrainer."""
    from datasets import Features, List, Value
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    config = LlamaConfig(vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    processes = min(count_cores(), MOST_PROCESSES, len(dataset) // ROWS_PER_PROCESS)
    arguments = SFTConfig(
        output_dir=scratch,
        use_cpu=True,  # without it SFTConfig raises where there is no GPU
        bf16=False,
        report_to="none",
        max_length=None,
        assistant_only_loss=request.assistant_only_loss,
        completion_only_loss=request.completion_only_loss,
        dataset_num_proc=processes if processes > 1 else None,
    )
    try:
        trainer = SFTTrainer(
            model=LlamaForCausalLM(config), args=arguments, train_dataset=dataset, processing_class=tokenizer
        )
    except Exception as error:
        raise UsageError(*_refusals(request, tokenizer, dialect, error)) from error
    numbers = List(Value("int32"))
    rows = trainer.train_dataset.select_columns(["input_ids", "labels"])
    return rows.cast(Features({"input_ids": numbers, "labels": numbers}))


def _refusals(request: TokenizationRequest, tokenizer: Any, dialect: Dialect, error: Exception) -> list[str]:
    """Name the rows that the chat template cannot render. If it renders them all, repeat what TRL said."""
    problems: list[str] = []
    for where, row in converted_rows(request.source, request.survey.form, dialect):
        messages = row.get("messages") or [*row.get("prompt", ()), *row.get("completion", ())]
        if not all(isinstance(message, dict) for message in messages):
            break  # strings are not rendered
        try:
            tokenizer.apply_chat_template(messages, tokenize=False, tools=json.loads(row.get("tools", "null")))
        except Exception as refusal:  # a template may raise anything
            problems.append(f"{where}: the chat template of {request.model} cannot render it ({refusal})")
            if len(problems) == PROBLEMS_SHOWN:
                break
    return problems or [f"{request.source.name}: TRL cannot tokenize it: {first_line(error)}"]
