"""The workload: which model is trained, on which data, as plain facts.

Lengths are those of rows as the trainer tokenizes them (data/describe.py). Leaves out packing: a packed row is cut by
other rules (core/batches/packing.py).

Symbols: N rows, l_i tokens of row i, S max_length. Coverage(S) = sum(min(l_i, S)) / sum(l_i).
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from autotune.core.recipe import Recipe
from autotune.errors import NothingFits, UsageError

MULTIPLE = 64  # tokens; tensor cores need multiples of 8, and 64 keeps the list of lengths short


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lengths:
    """Token counts of a dataset's rows.

    tokens: in the dataset's order, shape (N,), int64, N >= 1, each >= 1.
    labels: tokens of each row that reach the loss, shape (N,), int64: labels other than -100 after the first position
        (nothing predicts the first token of a row).
    distinct: the different values of `tokens`, ascending. most_labels: `labels` of the rows, largest first. Both are
        computed once, for thousands of candidates.
    """

    tokens: NDArray[np.int64]
    labels: NDArray[np.int64]
    distinct: NDArray[np.int64] = field(init=False)
    most_labels: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "distinct", np.unique(self.tokens))
        object.__setattr__(self, "most_labels", np.sort(np.minimum(self.labels, self.tokens - 1))[::-1])

    @property
    def rows(self) -> int:
        """N."""
        return len(self.tokens)

    @property
    def total(self) -> int:
        """All tokens of all rows."""
        return int(self.tokens.sum())

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return int(self.distinct[-1])

    def coverage(self, max_length: int) -> float:
        """Share of all tokens kept by truncating every row at `max_length` tokens, in (0, 1]."""
        return float(np.minimum(self.tokens, max_length).sum() / self.tokens.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """Facts of a model, known before any of its weights are loaded.

    path: directory or hub id that `from_pretrained` takes. name: what people call it.
    parameters: of the whole model, unquantized. limit: positions that the model was made for; None: no limit.
    window: positions that its sliding window reaches back, None without one.
    attention: `attn_implementation` values that the class supports.
    fingerprint: of config, tokenizer and the weights' identity; two equal fingerprints train identically.
    """

    path: str
    name: str
    model_type: str
    parameters: int
    layers: int
    vocabulary: int
    limit: int | None
    attention: tuple[str, ...]
    supports_checkpointing: bool
    is_mixture_of_experts: bool
    fingerprint: str
    window: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DataFacts:
    """Facts of a tokenized dataset.

    tokenized_path: directory of the Arrow cache with columns `input_ids` and `labels`, untruncated, in row order.
    form: `text`, `prompt_completion` or `messages`, after conversion to TRL's own forms.
    rows_in_file: rows of the source; more than `lengths.rows` when only a sample was tokenized.
    coverage_error: half-width of the 95 % interval of the mean length over `rows_in_file`, as a share of that length;
        0 when every row was read.
    """

    path: str
    name: str
    form: str
    lengths: Lengths
    rows_in_file: int
    coverage_error: float
    tokenized_path: str
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Workload:
    """Model facts, dataset facts and what the user asked for."""

    model: ModelFacts
    data: DataFacts
    recipe: Recipe


def too_few_rows(workload: Workload) -> list[str]:
    """Say so when the dataset has fewer rows than one optimizer step has samples; empty when it has enough."""
    asked, rows = workload.recipe.effective_batch_size, workload.data.rows_in_file
    if rows >= asked:
        return []
    return [
        f"recipe.effective_batch_size={asked}: the data has {rows} rows, fewer than one optimizer step; "
        f"at most {rows} samples can be asked for"
    ]


def check_workload(workload: Workload) -> None:
    """Judge the data against the recipe and the model, as far as needs no hardware.

    Raises UsageError when the data has no full optimizer step, NothingFits when the model cannot take rows as long as
    the recipe's coverage asks for.
    """
    if problems := too_few_rows(workload):
        raise UsageError(*problems)
    _longest(workload.data.lengths, least_coverage=workload.recipe.coverage, model_limit=workload.model.limit)


def max_length_candidates(lengths: Lengths, *, least_coverage: float, model_limit: int | None) -> tuple[int, ...]:
    """List the lengths worth trying, ascending, all within the model's limit.

    The first is the shortest multiple of 64 that keeps `least_coverage`. The last keeps everything, or is the limit.
    Between them, each is the shortest multiple that cuts at most half of what the one before it cuts.
    A `least_coverage` of 1 asks for all that the model can take. Raises NothingFits when even `model_limit` keeps less
    than a lower `least_coverage`.
    """
    longest = _longest(lengths, least_coverage=least_coverage, model_limit=model_limit)
    steps: list[int] = []
    wanted = least_coverage
    for step in range(MULTIPLE, longest, MULTIPLE):
        if (kept := lengths.coverage(step)) >= wanted:
            steps.append(step)
            wanted = (1 + kept) / 2
            if kept == 1:
                break
    if not steps or lengths.coverage(steps[-1]) < lengths.coverage(longest):
        steps.append(longest)
    return tuple(steps)


def _longest(lengths: Lengths, *, least_coverage: float, model_limit: int | None) -> int:
    """The longest length worth trying. Raises NothingFits as `max_length_candidates` does."""
    longest = _round_up(lengths.longest)
    if model_limit is not None:
        longest = min(longest, model_limit)
    if (kept := lengths.coverage(longest)) < least_coverage < 1:
        raise NothingFits(
            f"max_length={longest} keeps {kept:.1%} of the tokens, {least_coverage:.1%} asked: "
            "lower recipe.coverage, split long rows, or take a model with a longer context"
        )
    return longest


def _round_up(tokens: int) -> int:
    return -(-tokens // MULTIPLE) * MULTIPLE
