"""Lengths: how long the rows of a dataset are, where their labels lie, and what a cut leaves of both.

TRL cuts every row at max_length, and then drops the rows without any label, such as those whose prompt alone fills
max_length (trl 1.16, `SFTTrainer._prepare_dataset`). Lengths are those of rows as the trainer tokenizes them
(data/describe.py). Leaves out packing, which cuts by other rules and drops nothing (core/batches/packing.py).

Symbols: N rows, l_i tokens of row i, f_i the position of its first label, S max_length, P spans of labels, M rows that
are left: those with f_i < S. Coverage(S) = sum(min(l_i, S) of the rows that are left) / sum(l_i).
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

CUTS_KEPT = 16  # cuts that are remembered; a space tries about ten lengths
NEVER = np.iinfo(np.int64).max  # position of the first label of a row that has none


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spans:
    """The positions of rows that have a label, as spans of neighbours. Position 0 is the first token of a row.

    counts: spans of each row, shape (N,). starts, ends: of all spans, row after row, ascending within a row, shape
    (P,); a span holds the positions start <= position < end.
    """

    counts: Integers
    starts: Integers
    ends: Integers

    def sums(self, of_spans: Integers) -> Integers:
        """Add up a number of each span, shape (P,), over the spans of each row, shape (N,)."""
        sums = np.append(np.int64(0), of_spans.cumsum())
        last = self.counts.cumsum()
        found: Integers = sums[last] - sums[last - self.counts]
        return found

    def useful(self, max_length: int | None = None) -> Integers:
        """Count the labels of each row that reach the loss, shape (N,): nothing predicts the first token of a row."""
        ends = self.ends if max_length is None else np.minimum(self.ends, max_length)
        return self.sums(np.maximum(ends - np.maximum(self.starts, 1), 0))

    @property
    def first(self) -> Integers:
        """The position of each row's first label, shape (N,); NEVER where a row has none."""
        first = np.full(len(self.counts), NEVER)
        some = self.counts > 0
        first[some] = self.starts[(self.counts.cumsum() - self.counts)[some]]
        return first


@dataclass(frozen=True, kw_only=True, eq=False)  # no slots: cached_property needs a __dict__
class Cut:
    """What TRL trains of rows that it cuts and does not pack, in the dataset's order.

    tokens: of each row that is left, shape (M,), int64. labels: of these rows, those that reach the loss, shape (M,).
    """

    tokens: Integers
    labels: Integers

    @property
    def rows(self) -> int:
        """M."""
        return len(self.tokens)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return int(self.tokens.max())

    @cached_property
    def most_labels(self) -> Integers:
        """`labels`, largest first."""
        return np.sort(self.labels)[::-1]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lengths:
    """Token counts of a dataset's rows.

    tokens: in the dataset's order, shape (N,), int64, N >= 1, each >= 1.
    spans: where the labels lie, the values other than -100; at least one span of each row.
    labels: tokens of each row that reach the loss, shape (N,), int64: the labels after the first position.
    distinct: the different values of `tokens`, ascending.
    """

    tokens: Integers
    spans: Spans
    labels: Integers = field(init=False)
    distinct: Integers = field(init=False)
    _ascending: Integers = field(init=False)  # `tokens`
    _sums: Integers = field(init=False)  # of the first 0 ... N of these
    _first: Integers = field(init=False)  # f_i, ascending
    _cuts: dict[int, Cut] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        first, ascending = self.spans.first, np.sort(self.tokens)
        assert first.max() < NEVER, "a row without a label is never trained"
        object.__setattr__(self, "labels", self.spans.useful())
        object.__setattr__(self, "distinct", np.unique(ascending))
        object.__setattr__(self, "_ascending", ascending)
        object.__setattr__(self, "_sums", np.concatenate([[0], ascending.cumsum()]))
        object.__setattr__(self, "_first", np.sort(first))

    @classmethod
    def with_labels_last(cls, tokens: Integers, labels: Integers) -> "Lengths":
        """Rows whose labels are their last tokens, as a completion behind a prompt.

        labels: as the field. A row whose labels begin at its second token is taken for one without a prompt, whose
        first token has a label, too.
        """
        starts = tokens - labels
        starts = np.where(starts > 1, starts, 0)
        some = starts < tokens
        return cls(tokens=tokens, spans=Spans(counts=some.astype(np.int64), starts=starts[some], ends=tokens[some]))

    @property
    def rows(self) -> int:
        """N."""
        return len(self.tokens)

    @property
    def total(self) -> int:
        """All tokens of all rows."""
        return int(self._sums[-1])

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return int(self.distinct[-1])

    def rows_left(self, max_length: int) -> int:
        """M: how many rows have a label within their first `max_length` tokens."""
        return int(np.searchsorted(self._first, max_length))

    def rows_longer(self, length: int) -> int:
        """How many rows have more than `length` tokens."""
        return self.rows - int(np.searchsorted(self._ascending, length, side="right"))

    def tokens_left(self, max_length: int) -> int:
        """How many tokens the rows that are left keep. Rows of at most S tokens have their labels within S."""
        whole = self.rows - self.rows_longer(max_length)
        return int(self._sums[whole]) + max_length * (self.rows_left(max_length) - whole)

    def coverage(self, max_length: int) -> float:
        """Share of all tokens that is left after cutting every row at `max_length` tokens, in [0, 1]."""
        return self.tokens_left(max_length) / self.total

    def distinct_left(self, max_length: int) -> Integers:
        """The different lengths of the rows that are left, ascending. Empty when none is left."""
        whole = self.distinct[: np.searchsorted(self.distinct, max_length, side="right")]
        cut = self.rows_left(max_length) > self.rows - self.rows_longer(max_length)
        return np.unique(np.append(whole, max_length)) if cut else whole

    def cut(self, max_length: int) -> Cut:
        """Cut every row at `max_length` tokens as TRL does, and drop the rows that have no label then."""
        length = min(max_length, self.longest)
        if length not in self._cuts:
            if len(self._cuts) == CUTS_KEPT:
                del self._cuts[next(iter(self._cuts))]
            left = self.spans.first < length
            self._cuts[length] = Cut(
                tokens=np.minimum(self.tokens, length)[left], labels=self.spans.useful(length)[left]
            )
        return self._cuts[length]
