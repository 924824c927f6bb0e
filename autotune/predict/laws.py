"""Laws: how the memory and the time of one training's steps follow from their shape.

A law is derived from a traced profile once, and kept beside it. Leaves out which step stands for a candidate
(memory.py, time.py, step_seconds.py).
"""

from dataclasses import dataclass, field
from typing import Any

from autotune.core.candidate import Candidate
from autotune.core.memory.law import MemoryLaw, law_from_dict, memory_law
from autotune.core.step.deepening import deepen
from autotune.core.step.profile import Profile
from autotune.core.time.law import FORMAT as TIME_FORMAT
from autotune.core.time.law import TimeLaw, time_law, time_law_from_dict
from autotune.predict.training import Training
from autotune.trace.profiles import Profiles, describe_request
from autotune.trace.request import TraceRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedStep:
    """What decides the law of a step's time: its trace, and three facts that a trace does not depend on.

    accumulation: micro-steps of the step. selective: whether a policy decides what is recomputed.
    """

    request: TraceRequest
    accumulation: int
    tf32: bool
    selective: bool

    @classmethod
    def of(cls, candidate: Candidate, request: TraceRequest, *, accumulation: int) -> "TimedStep":
        """The step of a candidate if it had `accumulation` micro-steps. request: of its micro-batch."""
        selective = candidate.checkpointing == "selective"
        return cls(request=request, accumulation=accumulation, tf32=candidate.tf32, selective=selective)


@dataclass(frozen=True, slots=True, kw_only=True)
class Laws:
    """The laws of one training's steps. Each method raises NotPredicted for a step that cannot be traced."""

    training: Training
    profiles: Profiles
    _deep_profiles: dict[TraceRequest, Profile] = field(default_factory=dict, init=False, repr=False)
    _memory: dict[tuple[TraceRequest, int], MemoryLaw] = field(default_factory=dict, init=False, repr=False)
    _time: dict[TimedStep, TimeLaw] = field(default_factory=dict, init=False, repr=False)

    def memory(self, request: TraceRequest, *, accumulation: int) -> MemoryLaw:
        """The law of a step's memory. accumulation: micro-steps of the step."""
        layers = self.training.facts.layers
        if (key := (request, accumulation)) not in self._memory:
            question = {"profile": describe_request(request), "layers": layers, "accumulation": accumulation}

            def answer() -> dict[str, Any]:
                profile = self.profiles.load(request)
                return memory_law(profile, layers=layers, accumulation=accumulation).to_dict()

            kept = self.profiles.remember("laws", question, answer)
            self._memory[key] = law_from_dict(kept)
        return self._memory[key]

    def time(self, step: TimedStep) -> TimeLaw:
        """The law of a step's time."""
        layers = self.training.facts.layers
        if step not in self._time:
            known: dict[str, Any] = {"accumulation": step.accumulation, "tf32": step.tf32, "selective": step.selective}
            question = {"profile": describe_request(step.request), "layers": layers, **known, "format": TIME_FORMAT}

            def answer() -> dict[str, Any]:
                profile = self.profiles.load(step.request)
                return time_law(profile, layers=layers, **known).to_dict()

            kept = self.profiles.remember("time", question, answer)
            self._time[step] = time_law_from_dict(kept)
        return self._time[step]

    def deep_profile(self, request: TraceRequest) -> Profile:
        """The profile of a step with all the model's layers."""
        if request not in self._deep_profiles:
            profile = self.profiles.load(request)
            self._deep_profiles[request] = deepen(profile, self.training.facts.layers)
        return self._deep_profiles[request]
