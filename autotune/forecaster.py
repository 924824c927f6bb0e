"""The forecaster: the memory and the time of candidates of one model, dataset and machine, from traced profiles.

Used by `autotune estimate` for one candidate (estimate.py) and by a search for many (plan.py). What it finds is kept on
disk, so with all of it there neither torch nor transformers is imported.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from autotune import store
from autotune.core.allocator import parse_settings
from autotune.core.batches import Batch, Epoch, full_batch, is_masked, simulate_epoch, worst_batch
from autotune.core.calibrate import MEASURED, PUBLISHED, TimePrior, calibrate_time
from autotune.core.candidate import Candidate, Optimizer
from autotune.core.estimate import MemoryEstimate, Room, demand_from_dict, demand_of, fitting, host_items, room_of
from autotune.core.fidelity import divisors
from autotune.core.hardware import Hardware
from autotune.core.memory import MemoryLaw, Peak, law_from_dict, memory_law, peak
from autotune.core.profile import Profile, deepen
from autotune.core.published import published_speed
from autotune.core.recipe import Recipe
from autotune.core.regime import TILE, Regime, regime_of
from autotune.core.replay import replay
from autotune.core.speed import Speed, measured_speed
from autotune.core.timing import SPENT, TimeEstimate, TimeLaw, estimate_time, time_law, time_law_from_dict
from autotune.core.workload import Lengths, ModelFacts
from autotune.errors import NotPredicted
from autotune.profiles import Loss, ProfileRequest, describe_request, key_of, load_profile, request_of
from autotune.task import allocator_conf

DRAWN_STEPS = 16  # optimizer steps of the dataset that the allocator is replayed over, before the worst batch
MOST_ROWS = 1024  # of a micro-batch, when the largest that fits is looked for
MOST_LOOKS = 4  # estimates that may be made to find a larger one still
STEP = 64  # tokens between the lengths that are looked at
BATCHED_BY = (  # knobs that decide what the micro-batches are
    "batching",
    "max_length",
    "packed_length",
    "pad_to_multiple_of",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "devices",
)
# Why no larger value of a knob is named: it does not fit, the model or the data has no more, none was looked at, or
# none could be predicted.
End = Literal["memory", "model_limit", "data", "search_limit", "not_predicted"]
USUAL_OPTIMIZER: Optimizer = "adamw_torch_fused"
LONGEST = 2**17  # tokens: where a model has no limit


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
class TimeForecast:
    """An estimate of time. interval_s: seconds of a step between which nine of ten are expected.

    measured: whether it comes from the machine's measured rates, not from what is published of its GPU.
    """

    estimate: TimeEstimate
    interval_s: tuple[float, float]
    measured: bool

    @property
    def useful_tokens_per_s(self) -> float | None:
        """Labels that reach the loss in a second of training; None where the dataset is unknown."""
        tokens, steps = self.estimate.useful_tokens, self.estimate.steps
        return None if tokens is None or not steps else tokens / (steps * self.estimate.step_s)

    def steps(self, recipe: Recipe) -> float | None:
        """Optimizer steps of the training that is asked for; None where the dataset is unknown."""
        if recipe.max_steps is not None:
            return recipe.max_steps
        return None if self.estimate.steps is None else recipe.epochs * self.estimate.steps


def known_speed(hardware: Hardware) -> tuple[Speed, TimePrior] | None:
    """A machine's speed, and how far it may be off; None where nothing is known."""
    try:
        if hardware.rates:
            return measured_speed(hardware), MEASURED
        return None if hardware.peaks is None else (published_speed(hardware.peaks), PUBLISHED)
    except ValueError:
        return None


@dataclass(slots=True, kw_only=True)
class Forecaster:
    """Predicts candidates of one model, dataset and machine; profiles and laws are loaded once each.

    config, facts: as models.resolve_architecture gives them. lengths: None for full rows. thrifty: time is put together
    from the traces of fewer kinds of steps, as many candidates need it: the optimizer's from one of its own.
    """

    config: Mapping[str, Any]
    facts: ModelFacts
    lengths: Lengths | None
    recipe: Recipe
    loss: Loss
    hardware: Hardware
    seed: int
    home: Path
    progress: Callable[[str], None]
    thrifty: bool = False
    _profiles: dict[str, Profile] = field(default_factory=dict)
    _deep_profiles: dict[str, Profile] = field(default_factory=dict)
    _laws: dict[str, MemoryLaw] = field(default_factory=dict)
    _time_laws: dict[str, TimeLaw] = field(default_factory=dict)
    _epochs: dict[tuple[Any, ...], Epoch] = field(default_factory=dict)
    _known_speed: list[tuple[Speed, TimePrior] | None] | None = None  # once it was asked for

    @property
    def room(self) -> Room:
        """What the machine lets one training have."""
        return room_of(self.hardware)

    def batch(self, candidate: Candidate) -> Batch:
        """The candidate's worst micro-batch, as the loss on this kind of device sees it."""
        return self._scored(full_batch(candidate) if self.lengths is None else worst_batch(candidate, self.lengths))

    def peak(self, candidate: Candidate) -> Peak:
        """The worst moment of a candidate's step. Raises NotPredicted when it cannot be traced."""
        batch = self.batch(candidate)
        return peak(self._law(candidate, batch), batch.monomials)

    def law(self, candidate: Candidate) -> MemoryLaw:
        """The law of the candidate's worst micro-batch."""
        return self._law(candidate, self.batch(candidate))

    def host_bytes(self, candidate: Candidate) -> int:
        """What the host holds at its worst moment of a candidate's training."""
        batch = self.batch(candidate)
        held = host_items(self._law(candidate, batch), batch, candidate, on_cpu=self.room.on_cpu)
        return sum(held.values())

    def memory(self, candidate: Candidate) -> MemoryEstimate:
        """The estimate of one candidate, kept like the profile that it comes from."""
        batch = self.batch(candidate)
        request = self._profile_request(candidate, batch)
        steps = self._steps(candidate, batch, request.candidate.gradient_accumulation_steps)
        settings = parse_settings(allocator_conf(candidate.tuned_allocator))
        question = {
            "profile": describe_request(request),
            "layers": self.facts.layers,
            "candidate": candidate.to_dict(),
            "allocator": asdict(settings),
            "steps": [[each.monomials for each in step] for step in steps],
        }

        def answer() -> dict[str, Any]:
            profile = self._deep_profile(request)
            replayed = None
            if self.hardware.kind == "cuda":
                replayed = replay(
                    profile,
                    steps,
                    accumulation=candidate.gradient_accumulation_steps,
                    settings=settings,
                )
            law = self._law(candidate, batch)
            return demand_of(profile, law, replayed, candidate=candidate, batch=batch).to_dict()

        path = self.home / "profiles" / "estimates" / f"{key_of(question)}.json"
        return MemoryEstimate(
            demand=demand_from_dict(store.remember(path, question, answer, self.progress)), room=self.room
        )

    def time(self, candidate: Candidate) -> TimeForecast | None:
        """How long a candidate's steps take; None where the machine's speed does not tell.

        Nor is the way of offloaded activations over the bus predicted. Raises NotPredicted when it cannot be traced.
        """
        if self._known_speed is None:
            self._known_speed = [known_speed(self.hardware)]
        if (known := self._known_speed[0]) is None or candidate.activation_offloading:
            return None
        speed, prior = known
        epoch = None if self.lengths is None else self._epoch(candidate)
        whole = self.batch(candidate)
        middle = whole if epoch is None else self._scored(epoch.middle)
        shapes = np.array([whole.monomials], dtype=np.float64)
        if epoch is not None:
            shapes = replace(epoch, labels=self._scored_labels(epoch)).monomials
        try:
            estimate = estimate_time(
                self._thrifty_law(candidate, middle) if self.thrifty else self._time_law(candidate, middle),
                speed,
                shapes,
                accumulation=candidate.gradient_accumulation_steps,
                useful_tokens=None if epoch is None else int(epoch.labels.sum()),
            )
        except KeyError:  # an operation that a probe could not measure
            return None
        spent = np.array([[estimate.spent[one] for one in SPENT]])
        low, high = calibrate_time(prior, spent[:0], []).interval(spent)
        return TimeForecast(estimate=estimate, interval_s=(float(low[0]), float(high[0])), measured=prior is MEASURED)

    def largest_rows(self, candidate: Candidate, memory: MemoryEstimate) -> Largest:
        """The largest micro-batch of this length that fits."""
        ends: dict[End, int] = {"search_limit": MOST_ROWS}
        if self.lengths is not None:
            ends["data"] = self.lengths.rows
        values = range(1, min(ends.values()) + 1)
        return self._border(candidate, memory, "per_device_train_batch_size", values, ends)

    def largest_length(self, candidate: Candidate, memory: MemoryEstimate) -> Largest:
        """The largest length that fits with this micro-batch."""
        limit = self.facts.limit
        ends: dict[End, int] = {"search_limit": LONGEST} if limit is None else {"model_limit": limit}
        if self.lengths is not None and not candidate.packs:
            ends["data"] = self.lengths.longest
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
        for_free = frozen and (self.hardware.kind == "cpu" or self.hardware.supports_bf16)
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
        if candidate.checkpointing != "full" and self.facts.supports_checkpointing:
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
            self.progress(f"not suggested: {error}")
            return None

    def _suggestion(self, candidate: Candidate, changes: Mapping[str, Any]) -> Suggestion:
        return Suggestion(changes=changes, memory=self.memory(_changed(candidate, changes)))

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
            memory, looks = self.memory(self._with(candidate, knob, found)), looks + 1
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
        batches = [self.batch(other) for other in others]
        shapes = np.array([batch.monomials for batch in batches], dtype=np.float64)
        cases = [self._case(other, batch) for other, batch in zip(others, batches, strict=True)]
        law = self._law(candidate, self.batch(candidate))
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
                law = self._law(others[members[0]], batches[members[0]])
            except NotPredicted as error:
                self.progress(f"the largest {knob} is looked for no further: {error}")
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

    def _scored(self, batch: Batch) -> Batch:
        """TRL's head scores the labels alone where Triton runs, and every position on a CPU; full logits are all."""
        if self.hardware.kind == "cuda" and self.loss == "fused":
            return batch
        return replace(batch, labels=batch.rows * (batch.positions - 1))

    def _scored_labels(self, epoch: Epoch) -> Any:
        """The same of all micro-batches of an epoch, shape (C,)."""
        if self.hardware.kind == "cuda" and self.loss == "fused":
            return epoch.labels
        return epoch.rows * (epoch.positions - 1)

    def _case(self, candidate: Candidate, batch: Batch) -> tuple[Regime, bool]:
        """What batches of one law share: their regime, and whether they are masked."""
        regime = regime_of(batch.rows, batch.positions, self.facts.window, labels=batch.labels)
        return regime, is_masked(candidate, self.lengths)

    def _profile_request(self, candidate: Candidate, batch: Batch) -> ProfileRequest:
        return request_of(
            batch,
            candidate,
            config=self.config,
            recipe=self.recipe,
            window=self.facts.window,
            masked=is_masked(candidate, self.lengths),
            loss=self.loss,
            capability=self.hardware.compute_capability,
        )

    def _profile(self, request: ProfileRequest) -> Profile:
        key = key_of(describe_request(request))
        if key not in self._profiles:
            self._profiles[key] = load_profile(request, home=self.home, progress=self.progress)
        return self._profiles[key]

    def _deep_profile(self, request: ProfileRequest) -> Profile:
        """The profile with all layers. It is made once for the batches that share it."""
        key = key_of(describe_request(request))
        if key not in self._deep_profiles:
            self._deep_profiles[key] = deepen(self._profile(request), self.facts.layers)
        return self._deep_profiles[key]

    def _law(self, candidate: Candidate, batch: Batch) -> MemoryLaw:
        """The law at full depth, for all candidates of this one's case."""
        request = self._profile_request(candidate, batch)
        layers, accumulation = self.facts.layers, candidate.gradient_accumulation_steps
        question = {"profile": describe_request(request), "layers": layers, "accumulation": accumulation}
        if (key := key_of(question)) not in self._laws:

            def answer() -> dict[str, Any]:
                return memory_law(self._profile(request), layers=layers, accumulation=accumulation).to_dict()

            path = self.home / "profiles" / "laws" / f"{key}.json"
            self._laws[key] = law_from_dict(store.remember(path, question, answer, self.progress))
        return self._laws[key]

    def _thrifty_law(self, candidate: Candidate, batch: Batch) -> TimeLaw:
        """The law of a candidate from a step with the usual optimizer, and from a plain one with its own."""
        usual = replace(
            candidate,
            optimizer=USUAL_OPTIMIZER,
            gradient_accumulation_steps=max(2, candidate.gradient_accumulation_steps),
        )
        law = self._time_law(usual, batch)
        if candidate.optimizer == USUAL_OPTIMIZER:
            return law
        plain = replace(
            usual,
            optimizer=candidate.optimizer,
            checkpointing="off",
            every_n_layers=1,
            activation_offloading=False,
            batching="random",
            packed_length=None,
            per_device_train_batch_size=1,
        )
        few = Batch(rows=1, positions=batch.positions, labels=min(batch.labels, TILE))
        return replace(law, step_end=self._time_law(plain, few).step_end)

    def _time_law(self, candidate: Candidate, batch: Batch) -> TimeLaw:
        """The operators of a candidate's steps, kept like the law of its memory."""
        request = self._profile_request(candidate, batch)
        layers, accumulation, tf32 = self.facts.layers, candidate.gradient_accumulation_steps, candidate.tf32
        question = {
            "profile": describe_request(request),
            "layers": layers,
            "accumulation": accumulation,
            "tf32": tf32,
        }
        if (key := key_of(question)) not in self._time_laws:

            def answer() -> dict[str, Any]:
                return time_law(self._profile(request), layers=layers, accumulation=accumulation, tf32=tf32).to_dict()

            path = self.home / "profiles" / "time" / f"{key}.json"
            self._time_laws[key] = time_law_from_dict(store.remember(path, question, answer, self.progress))
        return self._time_laws[key]

    def _steps(self, candidate: Candidate, worst: Batch, micro_steps: int) -> list[list[Batch]]:
        """The optimizer steps that the allocator sees: some as they are drawn, then the worst batch, twice."""
        drawn = [] if self.lengths is None else self._epoch(candidate).batches(DRAWN_STEPS * micro_steps)
        scored = list(map(self._scored, drawn))
        steps = [scored[i : i + micro_steps] for i in range(0, len(scored) - micro_steps + 1, micro_steps)]
        return [*steps, [worst] * micro_steps, [worst] * micro_steps]

    def _epoch(self, candidate: Candidate) -> Epoch:
        """The epoch's micro-batches; of the dataset it needs the lengths. Candidates that batch alike share them."""
        assert self.lengths is not None
        key = tuple(getattr(candidate, knob) for knob in BATCHED_BY)
        if key not in self._epochs:
            self._epochs[key] = simulate_epoch(candidate, self.lengths, seed=self.seed)
        return self._epochs[key]


def _changed(candidate: Candidate, changes: Mapping[str, Any]) -> Candidate:
    """A candidate with changes, and with what follows from them."""
    changed = replace(candidate, **changes)
    if "checkpointing" in changes:
        changed = replace(changed, every_n_layers=1)
    rows = changed.per_device_train_batch_size * changed.devices
    return replace(changed, gradient_accumulation_steps=candidate.rows_per_step // rows)
