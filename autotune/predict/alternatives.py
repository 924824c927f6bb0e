"""Alternatives: what else would fit, the largest micro-batch and length, and what to change where a candidate does not.

Every one that is named was estimated itself (forecaster.py). Leaves out what is legal, which its caller knows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from autotune.core.batches.batches import Batch, is_masked
from autotune.core.candidate import Candidate
from autotune.core.memory.estimate import MemoryEstimate, fitting
from autotune.core.space.fidelity import divisors
from autotune.core.step.regime import Regime, regime_of
from autotune.errors import NotPredicted
from autotune.predict.forecaster import Forecaster

MOST_ROWS = 1024  # of a micro-batch, when the largest that fits is looked for
MOST_LOOKS = 4  # estimates that may be made to find a larger one still
STEP = 64  # tokens between the lengths that are looked at
LONGEST = 2**17  # tokens: where a model has no limit
# Why no larger value of a knob is named: it does not fit, the model or the data has no more, none was looked at, or
# none could be predicted.
End = Literal["memory", "model_limit", "data", "search_limit", "not_predicted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """What may make a candidate fit, complete in itself."""

    changes: Mapping[str, Any]
    memory: MemoryEstimate

    @property
    def words(self) -> str:
        """The changes as they stand on a command line; the method is the recipe's, and a candidate's must be its."""
        places = {knob: "recipe" if knob == "method" else "candidate" for knob in self.changes}
        return " ".join(f"{places[knob]}.{knob}={value}" for knob, value in self.changes.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Largest:
    """The largest value of a knob that fits, and why no larger one is named. value: None when none fits."""

    value: int | None
    ended_by: End


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternatives:
    """What else would fit, as a forecaster predicts it."""

    forecaster: Forecaster

    def largest_rows(self, candidate: Candidate, memory: MemoryEstimate) -> Largest:
        """The largest micro-batch of this length that fits."""
        ends: dict[End, int] = {"search_limit": MOST_ROWS}
        if self.forecaster.lengths is not None:
            ends["data"] = self.forecaster.lengths.rows
        values = range(1, min(ends.values()) + 1)
        return self._border(candidate, memory, "per_device_train_batch_size", values, ends)

    def largest_length(self, candidate: Candidate, memory: MemoryEstimate) -> Largest:
        """The largest length that fits with this micro-batch."""
        limit = self.forecaster.facts.limit
        ends: dict[End, int] = {"search_limit": LONGEST} if limit is None else {"model_limit": limit}
        if self.forecaster.lengths is not None and not candidate.packs:
            ends["data"] = self.forecaster.lengths.longest
        most = min(ends.values())
        return self._border(candidate, memory, "max_length", [*range(STEP, most, STEP), most], ends)

    def suggestions(
        self, candidate: Candidate, memory: MemoryEstimate, rows: int | None, is_legal: Callable[[Candidate], bool]
    ) -> Iterator[Suggestion]:
        """Changes that lead to one that fits, each complete in itself; each may cost a trace.

        First what costs no speed, a frozen base in bf16; then the micro-batch; and where neither will do alone, ever
        more on top of the smallest micro-batch. rows: the largest micro-batch that fits, None without one. All that is
        suggested is legal and keeps the rows of a step.
        """
        halved = {"weights_dtype": "bfloat16"}
        frozen = candidate.method == "lora" and candidate.weights_dtype == "float32"
        for_free = frozen and self.forecaster.hardware.supports_bf16
        with_less = self._suggested(candidate, halved, is_legal) if for_free else None
        if with_less is not None and not with_less.memory.fits:
            with_less = None
        if with_less is not None:
            yield with_less
        smaller = [
            {"per_device_train_batch_size": size}
            for size in divisors(candidate.rows_per_step // candidate.devices)
            if size < candidate.per_device_train_batch_size
        ]
        smaller = [change for change in smaller if is_legal(_changed(candidate, change))]
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
        if candidate.checkpointing != "full" and self.forecaster.facts.supports_checkpointing:
            steps.append({"checkpointing": "full"})
        if candidate.method == "full" or frozen:
            steps.append({"method": "lora", "weights_dtype": "bfloat16"})
        if candidate.method != "qlora":
            steps.append({"method": "qlora", "weights_dtype": "bfloat16"})
        for step in steps:
            found = self._suggested(candidate, {**changes, **step}, is_legal)
            if found is None:
                continue
            changes = {**changes, **step}
            yield found
            if found.memory.fits:
                return

    def _suggested(
        self, candidate: Candidate, changes: Mapping[str, Any], is_legal: Callable[[Candidate], bool]
    ) -> Suggestion | None:
        """A suggestion of what may be illegal or beyond prediction; then there is none."""
        if not is_legal(_changed(candidate, changes)):
            return None
        try:
            return self._suggestion(candidate, changes)
        except NotPredicted as error:
            self.forecaster.progress(f"not suggested: {error}")
            return None

    def _suggestion(self, candidate: Candidate, changes: Mapping[str, Any]) -> Suggestion:
        return Suggestion(changes=changes, memory=self.forecaster.memory(_changed(candidate, changes)))

    def _border(
        self,
        candidate: Candidate,
        memory: MemoryEstimate,
        knob: str,
        values: Sequence[int],
        ends: Mapping[End, int],
    ) -> Largest:
        """The largest of ascending values of a knob that fits, as an estimate of that value itself says.

        Fragmentation is first taken to be that of the candidate, then that of what was found with it. ends: what ends
        the values, each with the last that it allows.
        """
        best: int | None = None
        ended_by: End = "search_limit"
        looks = 0
        while best is None or looks < MOST_LOOKS:
            found, reason = self._largest(candidate, memory, knob, values)
            if found is None or (best is not None and found <= best):
                ended_by = reason
                break
            memory, looks = self.forecaster.memory(self._with(candidate, knob, found)), looks + 1
            if memory.fits:
                best = found
            else:
                values = [value for value in values if value < found]
                ended_by = "memory"
        last = min(ends.values())
        return Largest(
            value=best, ended_by=next(end for end in ends if ends[end] == last) if best == last else ended_by
        )

    def _largest(
        self, candidate: Candidate, memory: MemoryEstimate, knob: str, values: Sequence[int]
    ) -> tuple[int | None, End]:
        """The largest of ascending values of a knob that fits, and why the next does not.

        Values of one case share a law. The search begins where the law of the candidate itself would have it end, so
        that others are traced only at a border.
        """
        others = [self._with(candidate, knob, value) for value in values]
        batches = [self.forecaster.batch(other) for other in others]
        shapes = np.array([batch.monomials for batch in batches], dtype=np.float64)
        cases = [self._case(other, batch) for other, batch in zip(others, batches, strict=True)]
        law = self.forecaster.law(candidate)
        least = np.array([Batch(rows=1, positions=1, labels=0).monomials], dtype=np.float64)
        if not fitting(law, least, memory, candidate).all():
            return None, "memory"  # not even what does not depend on the shape
        guess = max(0, int(fitting(law, shapes, memory, candidate).sum()) - 1)
        best: int | None = None
        ended_by: End = "memory"
        tried: set[Any] = set()
        while (case := cases[guess]) not in tried:
            tried.add(case)
            members = [place for place, other in enumerate(cases) if other == case]
            try:
                law = self.forecaster.law(others[members[0]])
            except NotPredicted as error:
                self.forecaster.progress(f"the largest {knob} is looked for no further: {error}")
                ended_by = "not_predicted"
                break
            fits = fitting(law, shapes[members], memory, candidate)
            if not fits.any():
                guess = max(0, members[0] - 1)
                continue
            best = max(best or 0, max(place for place, it_fits in zip(members, fits, strict=True) if it_fits))
            guess = min(len(values) - 1, best + 1)
        return None if best is None else values[best], ended_by

    @staticmethod
    def _with(candidate: Candidate, knob: str, value: int) -> Candidate:
        changes: dict[str, Any] = {knob: value}
        if knob == "max_length" and candidate.packs:
            changes["packed_length"] = value
        return replace(candidate, **changes)

    def _case(self, candidate: Candidate, batch: Batch) -> tuple[Regime, bool]:
        """What batches of one law share: their regime, and whether they are masked."""
        regime = regime_of(batch.rows, batch.positions, self.forecaster.facts.window, labels=batch.labels)
        return regime, is_masked(candidate, self.forecaster.lengths)


def _changed(candidate: Candidate, changes: Mapping[str, Any]) -> Candidate:
    """A candidate with changes, and with what follows from them."""
    changed = replace(candidate, **changes)
    if "checkpointing" in changes:
        changed = replace(changed, every_n_layers=1)
    rows = changed.per_device_train_batch_size * changed.devices
    return replace(changed, gradient_accumulation_steps=candidate.rows_per_step // rows)
