"""The forecaster: the memory and the time of candidates of one model, dataset and machine, from traced profiles.

Used by `autotune estimate` for one candidate (estimate.py) and by a search for many (search/predictions.py). What it
finds is kept on disk, so with all of it there neither torch nor transformers is imported. Leaves out what else would
fit (alternatives.py).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from autotune import cache
from autotune.core.batches.batches import Batch, Epoch, full_batch, is_masked, simulate_epoch, worst_batch
from autotune.core.candidate import Candidate
from autotune.core.hardware import Hardware
from autotune.core.knobs import knobs_that_change
from autotune.core.memory.allocator import parse_settings
from autotune.core.memory.estimate import MemoryEstimate, Room, demand_from_dict, demand_of, host_items, room_of
from autotune.core.memory.law import MemoryLaw, Peak, law_from_dict, memory_law, peak
from autotune.core.memory.replay import replay
from autotune.core.recipe import Recipe
from autotune.core.step.deepening import deepen
from autotune.core.step.profile import Profile
from autotune.core.step.regime import regime_of
from autotune.core.time.calibration import MEASURED, PUBLISHED, TimeCalibration, TimePrior, calibrate_time
from autotune.core.time.common_steps import CommonSteps, common_steps
from autotune.core.time.law import FORMAT as TIME_FORMAT
from autotune.core.time.law import SPENT, TimeEstimate, TimeLaw, estimate_time, time_law, time_law_from_dict
from autotune.core.time.many_candidates import TimeParts, seconds_of_candidates
from autotune.core.time.published import published_speed
from autotune.core.time.speed import MachineSpeed, measured_speed
from autotune.core.workload import Lengths, ModelFacts
from autotune.errors import NotPredicted
from autotune.predict.experience import Taught
from autotune.trace.profiles import (
    Loss,
    ProfileRequest,
    describe_request,
    is_kept,
    key_of,
    load_profile,
    request_of,
    trace_missing,
)
from autotune.train.task import allocator_conf

DRAWN_STEPS = 16  # optimizer steps of the dataset that the allocator is replayed over, before the worst batch
BATCHED_BY = attrgetter(*knobs_that_change("batches"))  # knobs that decide what the micro-batches are
TIMED_BY = attrgetter(*knobs_that_change("trace"), *knobs_that_change("time"))  # that decide how long one takes
Identity = tuple[Any, ...]  # of a request, and of what is made of its profile


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeForecast:
    """An estimate of time. interval_s: seconds of a step between which nine of ten are expected.

    measured: whether it comes from the machine's measured rates, not from what is published of its GPU. trials: of
    searches on this machine, which have corrected it.
    """

    estimate: TimeEstimate
    interval_s: tuple[float, float]
    measured: bool
    trials: int = 0

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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Dealt:
    """What candidates that batch alike make of the dataset.

    epoch: with the labels that the loss scores. useful_tokens: of it. middle: of its micro-batches. kind: what the law
    depends on.
    """

    epoch: Epoch
    useful_tokens: int
    middle: Batch
    kind: tuple[Any, ...]


def known_speed(hardware: Hardware) -> tuple[MachineSpeed, TimePrior] | None:
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
    from the traces of fewer kinds of steps, as many candidates need it (core/time/common_steps.py). taught: what
    trials on the machine have taught, predicted seconds by what they are spent on, and the measured ones.
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
    taught: Sequence[Taught] = ()
    _profiles: dict[Identity, Profile] = field(default_factory=dict)
    _deep_profiles: dict[Identity, Profile] = field(default_factory=dict)
    _laws: dict[Identity, MemoryLaw] = field(default_factory=dict)
    _time_laws: dict[Identity, TimeLaw] = field(default_factory=dict)
    _joined_laws: dict[tuple[Any, ...], TimeLaw] = field(default_factory=dict)
    _laws_of_kinds: dict[tuple[Any, ...], TimeLaw | str] = field(default_factory=dict)  # or why there is none
    _dealt: dict[tuple[Any, ...], _Dealt] = field(default_factory=dict)
    _untimed: dict[Identity, str] = field(default_factory=dict)  # why, by a profile's identity
    _known_speed: tuple[MachineSpeed, TimePrior] | None = field(init=False)
    _calibration: TimeCalibration | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._known_speed = known_speed(self.hardware)
        if self._known_speed is not None:
            spent = np.array([each.spent for each in self.taught], dtype=np.float64).reshape(-1, len(SPENT))
            self._calibration = calibrate_time(self._known_speed[1], spent, [each.step_s for each in self.taught])

    @property
    def room(self) -> Room:
        """What the machine lets one training have."""
        return room_of(self.hardware)

    def batch(self, candidate: Candidate) -> Batch:
        """The candidate's worst micro-batch, as the loss on this kind of device sees it."""
        if self.lengths is None:
            return self._scored(full_batch(candidate))
        worst = [worst_batch(candidate, self.lengths)]
        if candidate.batching == "batch_rebalance":  # which gives short rows so many that they may take more room
            worst.append(self._deal(candidate).epoch.largest)
        largest = max(worst, key=lambda batch: batch.rows * batch.positions)
        return self._scored(replace(largest, labels=max(batch.labels for batch in worst)))

    def peak(self, candidate: Candidate) -> Peak:
        """The worst moment of a candidate's step. Raises NotPredicted when it cannot be traced."""
        batch = self.batch(candidate)
        return peak(self._law(candidate, batch), batch.monomials)

    def is_traced(self, candidate: Candidate) -> bool:
        """Whether the candidate's memory is told without a new trace."""
        return is_kept(self._profile_request(candidate, self.batch(candidate)), self.home)

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
            demand=demand_from_dict(cache.remember(path, question, answer, self.progress)), room=self.room
        )

    def time(self, candidate: Candidate) -> TimeForecast | None:
        """How long a candidate's steps take; None where the machine's speed does not tell.

        Nor is the way of offloaded activations over the bus predicted, nor fewer threads than cores: a probe uses all.
        Raises NotPredicted when it cannot be traced.
        """
        if self._known_speed is None or self._calibration is None or candidate.activation_offloading:
            return None
        if candidate.torch_threads not in (None, self.hardware.cores):
            return None
        speed, prior = self._known_speed
        of_the_epoch: dict[str, Any] = {"useful_tokens": None}
        if self.lengths is None:
            middle = self.batch(candidate)
            shapes = np.array([middle.monomials], dtype=np.float64)
        else:
            dealt = self._deal(candidate)
            middle, shapes = dealt.middle, dealt.epoch.monomials
            of_the_epoch = {"useful_tokens": dealt.useful_tokens, "new_shapes": dealt.epoch.new_shapes}
        try:
            estimate = estimate_time(
                self._law_of_time(candidate, middle),
                speed,
                shapes,
                accumulation=candidate.gradient_accumulation_steps,
                **of_the_epoch,
            )
        except KeyError:  # an operation that a probe could not measure
            return None
        low, high = self._calibration.interval(np.array([[estimate.spent[one] for one in SPENT]]))
        return TimeForecast(
            estimate=estimate.scaled(np.exp(self._calibration.logarithms).tolist()),
            interval_s=(float(low[0]), float(high[0])),
            measured=prior is MEASURED,
            trials=self._calibration.trials,
        )

    def time_parts(self, candidate: Candidate) -> TimeParts | None:
        """What `step_seconds` wants of a candidate; None where nothing tells. Raises as `time` does."""
        if self._known_speed is None or self.lengths is None or candidate.activation_offloading:
            return None
        dealt = self._deal(candidate)
        if (key := (*dealt.kind, *TIMED_BY(candidate))) not in self._laws_of_kinds:
            try:
                self._laws_of_kinds[key] = self._law_of_time(candidate, dealt.middle)
            except NotPredicted as error:
                self._laws_of_kinds[key] = str(error)
        if isinstance(law := self._laws_of_kinds[key], str):
            raise NotPredicted(law)
        return TimeParts(
            law=law,
            epoch=dealt.epoch,
            useful_tokens=dealt.useful_tokens,
            accumulation=candidate.gradient_accumulation_steps,
        )

    def trace_ahead(
        self, candidates: Iterable[Candidate], *, first: Sequence[Candidate] = (), until: float = math.inf
    ) -> None:
        """Trace what the time of these candidates takes, several steps at once.

        first: the ones to begin with. Then those with a value of a knob that none before them has, for of what is left
        the time can be guessed. until: of time.monotonic(); what has not begun then is not predicted: time_parts raises
        NotPredicted.
        """
        if self._known_speed is None or self.lengths is None:
            return
        kinds: dict[tuple[Any, ...], tuple[bool, Candidate, Batch]] = {}
        seen: set[tuple[int, Any]] = set()
        for number, candidate in enumerate((*first, *candidates)):
            if candidate.activation_offloading:
                continue
            dealt = self._deal(candidate)
            if (key := (*dealt.kind, *TIMED_BY(candidate))) not in kinds:
                values = set(enumerate(TIMED_BY(candidate)))
                kinds[key] = (number >= len(first) and values <= seen, candidate, dealt.middle)
                seen |= values
        ordered = sorted(kinds.values(), key=itemgetter(0))
        common = [self._timed_steps(candidate, batch) for _, candidate, batch in ordered]
        steps = [self._profile_request(*step) for each in common for step in each.steps]
        requests = {request.identity: request for request in steps}
        self._untimed = trace_missing(
            requests.values(),
            home=self.home,
            progress=self.progress,
            until=until,
            processes=self.hardware.cores,
        )

    def step_seconds(self, parts: Sequence[TimeParts]) -> Any:
        """Seconds of each one's optimizer step by what they are spent on, (n, SPENT); NaN where nothing tells."""
        assert self._known_speed is not None
        assert self._calibration is not None
        return seconds_of_candidates(parts, self._known_speed[0]) * np.exp(self._calibration.logarithms)

    def _scored(self, batch: Batch) -> Batch:
        """TRL's head scores the labels alone where Triton runs, and every position on a CPU; full logits are all."""
        return replace(batch, labels=batch.rows * (batch.positions - 1)) if self._scores_all else batch

    @property
    def _scores_all(self) -> bool:
        return self.hardware.kind == "cpu" or self.loss != "fused"

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
        key = request.identity
        if key not in self._profiles:
            self._profiles[key] = load_profile(request, home=self.home, progress=self.progress)
        return self._profiles[key]

    def _deep_profile(self, request: ProfileRequest) -> Profile:
        """The profile with all layers. It is made once for the batches that share it."""
        key = request.identity
        if key not in self._deep_profiles:
            self._deep_profiles[key] = deepen(self._profile(request), self.facts.layers)
        return self._deep_profiles[key]

    def _law(self, candidate: Candidate, batch: Batch) -> MemoryLaw:
        """The law at full depth, for all candidates of this one's case."""
        request = self._profile_request(candidate, batch)
        layers, accumulation = self.facts.layers, candidate.gradient_accumulation_steps
        if (key := (*request.identity, accumulation)) not in self._laws:
            question = {"profile": describe_request(request), "layers": layers, "accumulation": accumulation}

            def answer() -> dict[str, Any]:
                return memory_law(self._profile(request), layers=layers, accumulation=accumulation).to_dict()

            path = self.home / "profiles" / "laws" / f"{key_of(question)}.json"
            self._laws[key] = law_from_dict(cache.remember(path, question, answer, self.progress))
        return self._laws[key]

    def _timed_steps(self, candidate: Candidate, batch: Batch) -> CommonSteps:
        """What is traced for the time of a candidate: it, or (thrifty) what it has in common with others."""
        if self.thrifty:
            return common_steps(candidate, batch, self.config, self.facts)
        return CommonSteps(micro_steps=((candidate, batch),), shares=(1.0,), end=(candidate, batch))

    def _law_of_time(self, candidate: Candidate, batch: Batch) -> TimeLaw:
        """The law of a candidate's steps."""
        common = self._timed_steps(candidate, batch)
        laws = [self._time_law(*step, candidate.gradient_accumulation_steps) for step in common.steps]
        if (key := (common.shares, *map(id, laws))) not in self._joined_laws:  # so that a law is one object
            self._joined_laws[key] = common.law(laws)
        return self._joined_laws[key]

    def _time_law(self, candidate: Candidate, batch: Batch, accumulation: int) -> TimeLaw:
        """The operators of a candidate's steps, were there so many micro-steps in each; kept like the law of its
        memory."""
        request = self._profile_request(candidate, batch)
        layers, tf32 = self.facts.layers, candidate.tf32
        selective = candidate.checkpointing == "selective"
        if (problem := self._untimed.get(request.identity)) is not None:
            raise NotPredicted(problem)
        if (key := (*request.identity, accumulation, tf32, selective)) not in self._time_laws:
            question = {
                "profile": describe_request(request),
                "layers": layers,
                "accumulation": accumulation,
                "tf32": tf32,
                "selective": selective,
                "format": TIME_FORMAT,
            }

            def answer() -> dict[str, Any]:
                law = time_law(
                    self._profile(request), layers=layers, accumulation=accumulation, tf32=tf32, selective=selective
                )
                return law.to_dict()

            path = self.home / "profiles" / "time" / f"{key_of(question)}.json"
            self._time_laws[key] = time_law_from_dict(cache.remember(path, question, answer, self.progress))
        return self._time_laws[key]

    def _steps(self, candidate: Candidate, worst: Batch, micro_steps: int) -> list[list[Batch]]:
        """The optimizer steps that the allocator sees: some as they are drawn, then the worst batch, twice."""
        drawn = [] if self.lengths is None else self._deal(candidate).epoch.batches(DRAWN_STEPS * micro_steps)
        steps = [drawn[i : i + micro_steps] for i in range(0, len(drawn) - micro_steps + 1, micro_steps)]
        return [*steps, [worst] * micro_steps, [worst] * micro_steps]

    def _deal(self, candidate: Candidate) -> _Dealt:
        """What the candidate makes of the dataset, of which that needs the lengths."""
        assert self.lengths is not None
        if (key := BATCHED_BY(candidate)) not in self._dealt:
            epoch = simulate_epoch(candidate, self.lengths, seed=self.seed)
            useful_tokens = int(epoch.labels.sum())
            if self._scores_all:
                epoch = replace(epoch, labels=epoch.rows * (epoch.positions - 1))
            middle = epoch.middle
            regime = regime_of(middle.rows, middle.positions, self.facts.window, labels=middle.labels)
            self._dealt[key] = _Dealt(
                epoch=epoch,
                useful_tokens=useful_tokens,
                middle=middle,
                kind=(regime, is_masked(candidate, self.lengths), candidate.packs and candidate.batching),
            )
        return self._dealt[key]
