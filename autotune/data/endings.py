"""Endings: whether the model learns to stop.

A model stops when it generates a token of its generation configuration, or eos. It learns that from labels that hold
such a token, or the token by which the chat template ends a turn. Leaves out tokenizing (tokenization.py).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from autotune.core.units import count_of

ANSWER = "answer_b7c1"  # stands for an answer, to see what a template writes behind it


def notes_on_endings(model: str, tokenizer: Any, rows: Any, *, chat: bool) -> Iterator[str]:
    """Say so when the labels of rows do not teach the model to stop.

    rows: a dataset with the column `labels`. chat: whether the rows were rendered by the tokenizer's chat template.
    """
    stops, turn_end = stops_of(model, tokenizer), end_of_turn(tokenizer) if chat else None
    ended = rows_with_labels(rows, stops if turn_end is None else {*stops, turn_end})
    eos = f"eos ({tokenizer.eos_token})"
    if ended < len(rows):
        whose = f"the chat template of {model}" if chat else f"the tokenizer of {model}"
        which = "no row" if not ended else f"only {ended:,} of {count_of(len(rows), 'row')}"
        yield (
            f"WARNING: {which} has a label that ends a turn: {whose} writes neither {eos} nor another end where it is "
            "learned, so the model will not learn to stop"
        )
    elif turn_end is not None and turn_end not in stops:
        yield (
            f"turns end with {tokenizer.convert_ids_to_tokens(turn_end)}, which is neither {eos} nor in the generation "
            f"configuration of {model}: name it as eos_token_id when you generate, or the trained model goes on"
        )


def stops_of(model: str, tokenizer: Any) -> set[int]:
    """The tokens at which a model stops generating: eos, and those of its generation configuration."""
    from transformers import GenerationConfig

    try:
        named = GenerationConfig.from_pretrained(model).eos_token_id
    except (OSError, ValueError):  # a model need not have one, and a wrong one is refused elsewhere
        named = None
    stops = {*named} if isinstance(named, list) else {named}
    return {stop for stop in (*stops, tokenizer.eos_token_id) if stop is not None}


def end_of_turn(tokenizer: Any) -> int | None:
    """The first special token that the chat template writes behind an answer; None if it writes none."""
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": ANSWER}]
    try:
        rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception:  # a template may raise anything
        return None
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    _, found, rest = rendered.rpartition(ANSWER)
    behind = tokenizer(rest, add_special_tokens=False)["input_ids"] if found else []  # a template may change the text
    return next((token for token in behind if token in special), None)


def rows_with_labels(rows: Any, tokens: set[int]) -> int:
    """Count the rows of which a label is one of these tokens."""
    count = 0
    for batch in rows.with_format("arrow").iter(batch_size=10_000):
        labels = batch.column("labels").combine_chunks()
        lengths = labels.value_lengths().to_numpy(zero_copy_only=False)
        row = np.repeat(np.arange(len(lengths)), lengths)
        found = np.isin(labels.flatten().to_numpy(zero_copy_only=False), list(tokens))
        count += len(np.unique(row[found]))
    return count
