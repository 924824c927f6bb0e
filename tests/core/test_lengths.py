"""Lengths: what a cut leaves of rows, by hand, and laws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.core.lengths import Lengths, Spans
from tests.core.examples import lengths

# Three rows: a prompt of 20 tokens and an answer of 10, a text of 40, and two answers in 60 tokens.
THREE = Lengths(
    tokens=np.array([30, 40, 60]),
    spans=Spans(
        counts=np.array([1, 1, 2]), starts=np.array([20, 0, 10, 50]), ends=np.array([30, 40, 15, 60])
    ),
)  # fmt: skip


@pytest.mark.parametrize(
    ("max_length", "tokens", "labels"),
    [
        (60, [30, 40, 60], [10, 39, 15]),
        (55, [30, 40, 55], [10, 39, 10]),
        (21, [21, 21, 21], [1, 20, 5]),
        (20, [20, 20], [19, 5]),  # the prompt of the first row fills all
        (10, [10], [9]),  # no answer is left
    ],
)
def test_a_cut_by_hand(max_length: int, tokens: list[int], labels: list[int]) -> None:
    """Rows without a label are dropped, and what is counted of the others is within the cut."""
    cut = THREE.cut(max_length)
    assert (cut.tokens.tolist(), cut.labels.tolist()) == (tokens, labels)
    assert (cut.rows, cut.longest, cut.most_labels[0]) == (len(tokens), max(tokens), max(labels))
    assert THREE.rows_left(max_length) == len(tokens)
    assert THREE.coverage(max_length) == sum(tokens) / 130
    assert THREE.distinct_left(max_length).tolist() == sorted(set(tokens))


def test_nothing_is_left_where_no_label_is() -> None:
    """No error, but no row either."""
    prompts = lengths([30, 40], labels=5)
    assert (prompts.rows_left(25), prompts.coverage(25), prompts.distinct_left(25).tolist()) == (0, 0.0, [])
    assert (prompts.rows_left(26), prompts.tokens_left(26)) == (1, 26)


def test_rows_without_spans_end_with_their_labels() -> None:
    """As a prompt and its completion do; a row whose labels are all but one has no prompt."""
    spans = lengths([30, 40, 1], labels=39).spans
    assert (spans.starts.tolist(), spans.ends.tolist()) == ([0, 0, 0], [30, 40, 1])
    assert Lengths.with_labels_last(np.array([30, 40]), np.array([28, 3])).spans.first.tolist() == [2, 37]


ROWS = st.lists(
    st.tuples(st.integers(2, 90), st.integers(1, 89)).map(lambda r: (r[0], min(r[1], r[0] - 1))), min_size=1
)


@given(rows=ROWS, max_length=st.integers(1, 100))
def test_counts_are_those_of_the_cut(rows: list[tuple[int, int]], max_length: int) -> None:
    """What is counted without cutting is what the cut rows have."""
    tokens, labels = np.array(rows).T
    table = Lengths.with_labels_last(tokens, labels)
    cut = table.cut(max_length)
    assert (table.rows_left(max_length), table.tokens_left(max_length)) == (cut.rows, cut.tokens.sum())
    assert table.distinct_left(max_length).tolist() == np.unique(cut.tokens).tolist()
    assert table.rows_longer(max_length) == (tokens > max_length).sum()
    assert (table.labels == labels).all()


@given(rows=ROWS, shorter=st.integers(1, 100), more=st.integers(0, 50))
def test_a_longer_cut_never_keeps_less(rows: list[tuple[int, int]], shorter: int, more: int) -> None:
    """Neither rows nor tokens."""
    tokens, labels = np.array(rows).T
    table = Lengths.with_labels_last(tokens, labels)
    assert table.rows_left(shorter) <= table.rows_left(shorter + more)
    assert table.tokens_left(shorter) <= table.tokens_left(shorter + more)
