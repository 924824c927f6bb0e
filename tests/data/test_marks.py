"""Marks on messages: what a row wants to be learned is learned, and nothing else; or it is refused."""

from typing import Any

import pytest

from autotune.data.forms import BadRow, Dialect, convert, form_of
from autotune.data.marks import Loss, Mark, apply_marks, is_marked, marks_of

USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "hello"}


def converted(row: dict[str, Any]) -> dict[str, Any]:
    form = form_of(row)
    assert form is not None
    return convert(row, form, Dialect())


def learned(row: dict[str, Any]) -> list[bool | None]:
    return [mark.learned for mark in marks_of(converted(row))]


@pytest.mark.parametrize(
    ("mark", "no", "yes"), [("weight", 0, 1), ("train", False, True), ("trainable", False, True), ("loss", 0, 1)]
)
def test_marks_are_read_in_every_spelling(mark: str, no: Any, yes: Any) -> None:
    """In messages, in ShareGPT's turns, and in prompts and completions."""
    first, second = {**ASSISTANT, mark: no}, {**ASSISTANT, mark: yes}
    assert learned({"messages": [USER, first, USER, second, USER, ASSISTANT]}) == [None, False, None, True, None, None]
    said = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello", mark: no}]
    assert learned({"conversations": said}) == [None, False]
    assert learned({"prompt": [USER, first, USER], "completion": [second]}) == [None, False, None, True]


def test_rows_without_marks_are_known() -> None:
    """Strings hold no messages."""
    assert not is_marked({"text": "a"})
    assert not is_marked({"prompt": "a", "completion": "b"})
    assert not is_marked(converted({"messages": [USER, ASSISTANT]}))


def test_a_weight_between_none_and_all_is_refused() -> None:
    """TRL's loss knows no weights."""
    with pytest.raises(BadRow, match=r"marks a message with 0.5, expected 0 or 1"):
        marks_of(converted({"messages": [USER, {**ASSISTANT, "weight": 0.5}]}))


def marks(*said: tuple[str, str, bool | None]) -> list[Mark]:
    return [Mark(part=part, role=role, learned=learned) for part, role, learned in said]


CHAT = (("messages", "user", None), ("messages", "assistant", False), ("messages", "assistant", None))
HISTORY = (("prompt", "user", None), ("prompt", "assistant", False), ("prompt", "user", None))
ANSWER = ("completion", "assistant", None)
ALL = Loss(completion_only=False, assistant_only=False)
ANSWERS = Loss(completion_only=False, assistant_only=True)
COMPLETION = Loss(completion_only=True, assistant_only=False)
ROW = [-100, 1, 2, -100, 3]  # two runs
END = [-100, -100, -100, 4, 5]  # one run


@pytest.mark.parametrize(
    ("labels", "said", "loss", "expected"),
    [
        (ROW, CHAT, ANSWERS, [-100, -100, -100, -100, 3]),
        (
            ROW,
            (*CHAT[:1], ("messages", "assistant", True), ("messages", "assistant", False)),
            ANSWERS,
            [-100, 1, 2, -100, -100],
        ),
        (END, (*HISTORY, ANSWER), COMPLETION, END),  # the prompt is not learned anyway
        (END, (*HISTORY, ("completion", "assistant", False)), COMPLETION, [-100] * 5),
        (ROW, (*HISTORY, ANSWER), ANSWERS, [-100, -100, -100, -100, 3]),
        (ROW, (("messages", "user", False), ("messages", "assistant", True), CHAT[2]), ANSWERS, ROW),
        ([1, 2, 3], (("messages", "user", True), ("messages", "assistant", True)), ALL, [1, 2, 3]),
    ],
)
def test_labels_follow_the_marks(labels: list[int], said: Any, loss: Loss, expected: list[int]) -> None:
    """A table by hand: whatever is not marked is learned as the recipe says."""
    assert apply_marks(labels, marks(*said), loss) == expected


@pytest.mark.parametrize(
    ("labels", "said", "loss", "message"),
    [
        ([1, 2, 3], CHAT, ALL, "but 3 messages are learned as 1 part; recipe.assistant_only_loss=true makes"),
        (
            [1, 2],
            (("messages", "user", False), CHAT[2]),
            ALL,
            "marks a message as not learned, but 2 messages are learned as 1 part",
        ),
        (END, CHAT, ANSWERS, "are learned as 1 part; the chat template does not keep the messages apart"),
        (
            END,
            (("prompt", "assistant", True), ANSWER),
            COMPLETION,
            "a message of the assistant in prompt as learned, but recipe.completion_only_loss (true by default",
        ),
        (
            ROW,
            (("messages", "user", True), ("messages", "assistant", None)),
            ANSWERS,
            "a message of the user in messages as learned, but recipe.assistant_only_loss=true leaves it out",
        ),
    ],
)
def test_marks_that_cannot_be_kept_are_refused(labels: list[int], said: Any, loss: Loss, message: str) -> None:
    """A message would be learned that must not be, or the other way round."""
    with pytest.raises(BadRow) as bad:
        apply_marks(labels, marks(*said), loss)
    assert message in str(bad.value)
