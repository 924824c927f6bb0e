"""Marks on messages: which of them the row wants to be learned, and the labels that follow.

OpenAI, Mistral and Axolotl each write them in their own way: `weight`, `train`, `loss`. Leaves out what TRL itself
keeps out of the loss (tokenization.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotune.core.units import count_of
from autotune.data.forms import MARKS, BadRow

IGNORED = -100  # label of a token that does not reach the loss, in torch and everywhere above it


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Whether a row says that a message is learned. None: it does not say. part: the field that holds the message."""

    part: str
    role: str
    learned: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Which messages reach the loss. completion_only: those of a prompt do not. assistant_only: no others do."""

    completion_only: bool
    assistant_only: bool


def marks_of(row: Mapping[str, Any]) -> list[Mark]:
    """List the marks of all messages of a converted row, in their order; none for strings.

    Raises BadRow for a weight between 0 and 1.
    """
    marks = []
    for part in ("prompt", "completion", "messages"):
        for message in row[part] if isinstance(row.get(part), list) else ():
            values = [message[mark] for mark in MARKS if mark in message]
            if partial := [value for value in values if value not in (0, 1)]:
                raise BadRow(f"marks a message with {partial[0]!r}, expected 0 or 1: a message is learned or not")
            marks.append(Mark(part=part, role=message["role"], learned=all(values) if values else None))
    return marks


def is_marked(row: Mapping[str, Any]) -> bool:
    """Whether some message of a converted row has a mark. Raises BadRow as `marks_of` does."""
    return any(mark.learned is not None for mark in marks_of(row))


def apply_marks(labels: Sequence[int], marks: Sequence[Mark], loss: Loss) -> list[int]:
    """Take the messages that are marked as not learned out of the labels of a row.

    Each message that reaches the loss must be one run of labels. Raises BadRow if a mark cannot be kept.
    """
    reaching = [mark for mark in marks if not _left_out_by(mark, loss)]
    if lost := [mark for mark in marks if mark.learned and mark not in reaching]:
        raise BadRow(
            f"marks a message of the {lost[0].role} in {lost[0].part} as learned, "
            f"but {_left_out_by(lost[0], loss)} leaves it out"
        )
    if all(mark.learned is not False for mark in reaching):
        return list(labels)
    after = np.array(labels)
    runs = _runs(after)
    if len(runs) != len(reaching):
        raise BadRow(
            f"marks a message as not learned, but {count_of(len(reaching), 'message')} are learned as "
            f"{count_of(len(runs), 'part')}; "
            + (
                "the chat template does not keep the messages apart"
                if loss.assistant_only
                else "recipe.assistant_only_loss=true makes each message of the assistant one part"
            )
        )
    for run, mark in zip(runs, reaching, strict=True):
        if mark.learned is False:
            after[run] = IGNORED
    return [int(label) for label in after]


def _left_out_by(mark: Mark, loss: Loss) -> str:
    """Name the option that keeps a message out of the loss; empty if it reaches the loss."""
    if mark.part == "prompt" and loss.completion_only:
        return "recipe.completion_only_loss (true by default for prompts and completions)"
    if mark.role != "assistant" and loss.assistant_only:
        return "recipe.assistant_only_loss=true"
    return ""


def _runs(labels: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Find the places of the labels that reach the loss, one array for each run of neighbours."""
    places = np.flatnonzero(labels != IGNORED)
    return np.split(places, np.flatnonzero(np.diff(places) > 1) + 1) if len(places) else []
