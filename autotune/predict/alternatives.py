"""Alternatives: the largest micro-batch and length that fit, and what to change where a candidate does not fit.

Every alternative that is named was estimated itself (memory.py). Leaves out which candidates are legal: the caller
says.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from autotune.core.arithmetic import divisors
from autotune.core.batches.batches import Batch
from autotune.core.candidate import Candidate
from autotune.core.memory.estimate import MemoryEstimate, fitting
from autotune.errors import NotPredicted
from autotune.predict.memory import MemoryPredictor

MOST_ROWS = 1024  # the largest micro-batch that is tried
MOST_ESTIMATES = 4  # of one knob's values, to find a larger one that fits
SPACING = 64  # tokens between the lengths that are tried
LONGEST = 2**17  # tokens: the longest length that is tried where the model has no limit
# Why no larger value of a knob is named: it does not fit in memory; the model or the data ends there; no larger one was
# tried; or a larger one cannot be predicted.
End = Literal["memory", "model_limit", "data", "search_limit", "not_predicted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """Changes that may make a candidate fit, and the memory of the candidate with all of them."""

    changes: Mapping[str, Any]
    memory: MemoryEstimate

    @property
    def words(self) -> str:
        """The changes as words of a command line. A method is set by the recipe, and the candidate has the recipe's."""
        places = {knob: "recipe" if knob == "method" else "candidate" for knob in self.changes}
        return " ".join(f"{places[knob]}.{knob}={value}" for knob, value in self.changes.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Largest:
    """The largest value of a knob that fits, None when none does, and why no larger one is named."""

    value: int | None
    ended_by: End


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternatives:
    """Looks for what else would fit. progress: gets a line for what cannot be predicted."""

    memory: MemoryPredictor
    is_legal: Callable[[Candidate], bool]
    progress: Callable[[str], None]

    def largest_rows(self, candidate: Candidate, memory: MemoryEstimate) -> Largest:
        """The largest micro-batch of this length that fits."""
        lengths = self.memory.training.lengths
        ends: dict[End, int] = {"search_limit": MOST_ROWS}
        if lengths is not None:
            ends["data"] = lengths.rows if candidate.packs else lengths.rows_left(candidate.max_length)
        values = range(1, min(ends.values()) + 1)
        return self._largest(candidate, memory, "per_device_train_batch_size", values, ends)

    def largest_length(self, candidate: Candidate, memory: MemoryEstimate) -> Largest:
        """The largest length that fits with this micro-batch."""
        limit, lengths = self.memory.training.facts.limit, self.memory.training.lengths
        ends: dict[End, int] = {"search_limit": LONGEST} if limit is None else {"model_limit": limit}
        if lengths is not None and not candidate.packs:
            ends["data"] = lengths.longest
        most = min(ends.values())
        values = [*range(SPACING, most, SPACING), most]
        if lengths is not None:  # below, the cut would leave no row
            values = [value for value in values if lengths.rows_left(value)]
        return self._largest(candidate, memory, "max_length", values, ends)

    def suggestions(self, candidate: Candidate, memory: MemoryEstimate, rows: int | None) -> Iterator[Suggestion]:
        """Suggest changes that lead to a candidate that fits. Each one may cost a trace, which takes seconds.

        First comes a frozen base in bf16, which costs no speed, then a smaller micro-batch. If neither is enough by
        itself, further changes are added to the smallest micro-batch, one after another, until the candidate fits.
        rows: the largest micro-batch that fits, None without one. All suggestions are legal and keep the rows of a
        step.
        """
        halved = {"weights_dtype": "bfloat16"}
        frozen = candidate.method == "lora" and candidate.weights_dtype == "float32"
        for_free = frozen and self.memory.training.hardware.supports_bf16
        with_less = self._suggested(candidate, halved) if for_free else None
        if with_less is not None and not with_less.memory.fits:
            with_less = None
        if with_less is not None:
            yield with_less
        smaller = [
            {"per_device_train_batch_size": size}
            for size in divisors(candidate.rows_per_step // candidate.devices)
            if size < candidate.per_device_train_batch_size
        ]
        smaller = [change for change in smaller if self.is_legal(_changed(candidate, change))]
        fitting_rows = [change for change in smaller if change["per_device_train_batch_size"] <= (rows or 0)]
        if fitting_rows:
            yield self._suggestion(candidate, fitting_rows[-1])
        if fitting_rows or with_less is not None:
            return
        changes: dict[str, Any] = dict(smaller[0]) if smaller else {}
        steps: list[dict[str, Any]] = []
        if not memory.fits_host and candidate.activation_offloading:
            steps.append({"activation_offloading": False})
        if not memory.fits_host and candidate.optimizer == "paged_adamw_8bit":
            steps.append({"optimizer": "adamw_8bit"})
        if candidate.checkpointing != "full" and self.memory.training.facts.supports_checkpointing:
            steps.append({"checkpointing": "full"})
        if candidate.method == "full" or frozen:
            steps.append({"method": "lora", "weights_dtype": "bfloat16"})
        if candidate.method != "qlora":
            steps.append({"method": "qlora", "weights_dtype": "bfloat16"})
        for step in steps:
            found = self._suggested(candidate, {**changes, **step})
            if found is None:
                continue
            changes = {**changes, **step}
            yield found
            if found.memory.fits:
                return

    def _suggested(self, candidate: Candidate, changes: Mapping[str, Any]) -> Suggestion | None:
        """Suggest changes; None where they are illegal or cannot be predicted."""
        if not self.is_legal(_changed(candidate, changes)):
            return None
        try:
            return self._suggestion(candidate, changes)
        except NotPredicted as error:
            self.progress(f"not suggested: {error}")
            return None

    def _suggestion(self, candidate: Candidate, changes: Mapping[str, Any]) -> Suggestion:
        return Suggestion(
            changes=changes, memory=self.memory.estimate(self.memory.worst_step(_changed(candidate, changes)))
        )

    def _largest(
        self,
        candidate: Candidate,
        memory: MemoryEstimate,
        knob: str,
        values: Sequence[int],
        ends: Mapping[End, int],
    ) -> Largest:
        """Find the largest of ascending values of a knob that fits.

        A law gives a value, and an estimate confirms it. The law needs to know how much fragmentation adds: first as
        much as for the candidate, and after each estimate as much as for the value that was estimated. ends: the last
        value that each end allows.
        """
        best: int | None = None
        ended_by: End = "search_limit"
        estimates = 0
        while best is None or estimates < MOST_ESTIMATES:
            found, reason = self._largest_by_law(candidate, memory, knob, values)
            if found is None or (best is not None and found <= best):
                ended_by = reason
                break
            memory = self.memory.estimate(self.memory.worst_step(_with(candidate, knob, found)))
            estimates += 1
            if memory.fits:
                best = found
            else:
                values = [value for value in values if value < found]
                ended_by = "memory"
        last = min(ends.values())
        return Largest(
            value=best, ended_by=next(end for end in ends if ends[end] == last) if best == last else ended_by
        )

    def _largest_by_law(
        self, candidate: Candidate, memory: MemoryEstimate, knob: str, values: Sequence[int]
    ) -> tuple[int | None, End]:
        """Find the largest of ascending values of a knob that fits by its law, and why the next one does not.

        Values of one case share a law. The search begins at the largest value that fits by the candidate's own law.
        Other laws are traced only for values next to those that are known to fit.
        """
        others = [_with(candidate, knob, value) for value in values]
        batches = [self.memory.batches.worst(other) for other in others]
        shapes = np.array([batch.monomials for batch in batches], dtype=np.float64)
        cases = [self.memory.batches.case(other, batch) for other, batch in zip(others, batches, strict=True)]
        law = self.memory.worst_step(candidate).law
        least = np.array([Batch(rows=1, positions=1, labels=0).monomials], dtype=np.float64)
        if not fitting(law, least, memory, candidate).all():
            return None, "memory"  # the smallest micro-batch does not fit
        guess = max(0, int(fitting(law, shapes, memory, candidate).sum()) - 1)
        best: int | None = None
        ended_by: End = "memory"
        tried: set[Any] = set()
        while (case := cases[guess]) not in tried:
            tried.add(case)
            members = [place for place, other in enumerate(cases) if other == case]
            try:
                law = self.memory.worst_step(others[members[0]]).law
            except NotPredicted as error:
                self.progress(f"no larger {knob} is looked for: {error}")
                ended_by = "not_predicted"
                break
            fits = fitting(law, shapes[members], memory, candidate)
            if not fits.any():
                guess = max(0, members[0] - 1)
                continue
            best = max(best or 0, max(place for place, it_fits in zip(members, fits, strict=True) if it_fits))
            guess = min(len(values) - 1, best + 1)
        return None if best is None else values[best], ended_by


def _with(candidate: Candidate, knob: str, value: int) -> Candidate:
    """A candidate with another value of a knob; packed rows are as long as max_length."""
    changes: dict[str, Any] = {knob: value}
    if knob == "max_length" and candidate.packs:
        changes["packed_length"] = value
    return replace(candidate, **changes)


def _changed(candidate: Candidate, changes: Mapping[str, Any]) -> Candidate:
    """A candidate with changes of knobs, and of the knobs that follow from them."""
    changed = replace(candidate, **changes)
    if "checkpointing" in changes:
        changed = replace(changed, every_n_layers=1)
    rows = changed.per_device_train_batch_size * changed.devices
    return replace(changed, gradient_accumulation_steps=candidate.rows_per_step // rows)
