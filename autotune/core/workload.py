"""The workload: which model is trained, on which data, as plain facts, and which lengths are worth trying.

Leaves out how rows are cut (lengths.py) and packed (core/batches/packing.py).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autotune.core.lengths import Lengths
from autotune.core.recipe import Recipe
from autotune.core.units import count_of
from autotune.errors import NothingFits, UsageError

MULTIPLE = 64  # tokens; tensor cores need multiples of 8, and 64 keeps the list of lengths short


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """Facts of a model, known before any of its weights are loaded.

    path: directory or hub id that `from_pretrained` takes. name: what people call it.
    parameters: of the whole model, unquantized. limit: positions that the model was made for; None: no limit.
    window: positions that its sliding window reaches back, None without one.
    not_adapted: last names of linear modules that PEFT's LoRA refuses in this type of model.
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
    not_adapted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DataFacts:
    """Facts of a tokenized dataset.

    tokenized_path: directory of the Arrow cache with columns `input_ids` and `labels`, untruncated, in row order.
    form: `text`, `prompt_completion` or `messages`, after conversion to TRL's own forms.
    lengths: of the rows that were tokenized and have a label.
    rows_in_file: rows of the source. share_tokenized: of these, in (0, 1]; below 1 where only a sample was tokenized.
    coverage_error: half-width of the 95 % interval of the mean length over `rows_in_file`, as a share of that length;
        0 when every row was read.
    split: that the rows come from; None where the data has no splits.
    """

    path: str
    name: str
    form: str
    lengths: Lengths
    rows_in_file: int
    coverage_error: float
    tokenized_path: str
    fingerprint: str
    share_tokenized: float = 1.0
    split: str | None = None

    def rows_left(self, max_length: int) -> int:
        """How many rows TRL trains when it cuts them at `max_length`; an estimate where a sample was tokenized."""
        return round(self.lengths.rows_left(max_length) / self.share_tokenized)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Workload:
    """Model facts, dataset facts and what the user asked for."""

    model: ModelFacts
    data: DataFacts
    recipe: Recipe

    @property
    def least_rows(self) -> int:
        """How many rows of `data.lengths` stand for the samples of one optimizer step."""
        return math.ceil(self.recipe.effective_batch_size * self.data.share_tokenized)


def too_few_rows(workload: Workload, max_length: int | None = None) -> list[str]:
    """Say so when fewer rows are left than one optimizer step has samples; empty when there are enough.

    max_length: where rows are cut; None: where the model's limit or the longest row is.
    """
    data, limit = workload.data, workload.model.limit
    length = max_length or min(data.lengths.longest, limit or data.lengths.longest)
    asked, rows = workload.recipe.effective_batch_size, data.rows_left(length)
    if rows == 0:
        where = f"candidate.max_length={max_length}" if max_length else f"{workload.model.name} takes {length} tokens"
        return [
            f"{where}: no row of {data.name} has a label within its first {count_of(length, 'token')}, so nothing "
            "would be trained; take more tokens, shorten the prompts, or take a model with a longer context"
        ]
    if rows >= asked:
        return []
    after = f"after the cut at max_length={length} " if rows < data.rows_left(data.lengths.longest) else ""
    return [
        f"recipe.effective_batch_size={asked}: {after}the data has {count_of(rows, 'row')}, fewer than one optimizer "
        f"step; at most {count_of(rows, 'sample')} can be asked for"
    ]


def cut_by(fixed: Mapping[str, Any]) -> int | None:
    """The length at which fixed knobs say that TRL cuts rows and drops those without a label; None where they do not.

    Packing drops no row.
    """
    packs = str(fixed.get("batching")).startswith("pack_") or fixed.get("packed_length") is not None
    return None if packs else fixed.get("max_length")


def check_workload(workload: Workload, *, max_length: int | None = None) -> None:
    """Judge the data against the recipe and the model, as far as needs no hardware.

    max_length: where the user said that rows are cut; None leaves it to the search. Raises UsageError when no full
    optimizer step is left, NothingFits when the model cannot take rows as long as the recipe's coverage asks for.
    """
    if problems := too_few_rows(workload, max_length):
        raise UsageError(*problems)
    _longest(workload.data.lengths, least_coverage=workload.recipe.coverage, model_limit=workload.model.limit)


def max_length_candidates(
    lengths: Lengths, *, least_coverage: float, model_limit: int | None, least_rows: int = 1
) -> tuple[int, ...]:
    """List the lengths worth trying, ascending, all within the model's limit.

    The first is the shortest multiple of 64 that keeps `least_coverage`, and that leaves `least_rows` rows. The last
    keeps everything, or is the limit. Between them, each is the shortest multiple that cuts at most half of what the
    one before it cuts.
    A `least_coverage` of 1 asks for all that the model can take. Raises NothingFits when even `model_limit` keeps less
    than a lower `least_coverage`.
    """
    longest = _longest(lengths, least_coverage=least_coverage, model_limit=model_limit)
    steps: list[int] = []
    wanted = least_coverage
    for step in range(MULTIPLE, longest, MULTIPLE):
        if (kept := lengths.coverage(step)) >= wanted and lengths.rows_left(step) >= least_rows:
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
