"""The memory of one training's candidates: what each takes of the device and of the host with its worst micro-batch.

Leaves out what else would fit (alternatives.py), and how trials correct the predictions (search/predicted_memory.py).
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autotune.core.batches.batches import Batch
from autotune.core.candidate import Candidate
from autotune.core.memory.allocator import parse_settings
from autotune.core.memory.estimate import MemoryEstimate, Room, demand_from_dict, demand_of, host_items, room_of
from autotune.core.memory.law import MemoryLaw, Peak, peak
from autotune.core.memory.replay import replay
from autotune.predict.laws import Laws
from autotune.predict.micro_batches import MicroBatches
from autotune.predict.training import Training
from autotune.trace.profiles import Profiles, describe_request
from autotune.trace.request import TraceRequest
from autotune.train.task import allocator_conf


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WorstStep:
    """A candidate's step with the micro-batch that takes the most memory.

    peak: what lives on the device at its worst moment. host_bytes: what the host holds at the worst moment of the whole
    training. law: of the step's memory, for any micro-batch of its case.
    """

    candidate: Candidate
    batch: Batch
    request: TraceRequest
    law: MemoryLaw
    peak: Peak
    host_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPredictor:
    """Predicts the memory of one training's candidates.

    The first candidate of its kind costs a trace, which takes seconds. The methods raise NotPredicted for a candidate
    that cannot be traced.
    """

    batches: MicroBatches
    laws: Laws

    @classmethod
    def of(cls, training: Training, *, home: Path, progress: Callable[[str], None]) -> "MemoryPredictor":
        """Set up the predictor of a training. home: the cache. progress: gets a line for each new trace."""
        profiles = Profiles(home=home, progress=progress)
        return cls(batches=MicroBatches(training=training), laws=Laws(training=training, profiles=profiles))

    @property
    def training(self) -> Training:
        """What is predicted."""
        return self.laws.training

    @property
    def room(self) -> Room:
        """What the machine has for one training."""
        return room_of(self.training.hardware)

    def is_traced(self, candidate: Candidate) -> bool:
        """Whether the candidate's memory is known without a new trace."""
        return self.laws.profiles.has(self.training.request(candidate, self.batches.worst(candidate)))

    def worst_step(self, candidate: Candidate) -> WorstStep:
        """Predict the candidate's worst step. Quick once it is traced: nothing is replayed through the allocator."""
        batch = self.batches.worst(candidate)
        request = self.training.request(candidate, batch)
        law = self.laws.memory(request, accumulation=candidate.gradient_accumulation_steps)
        held = host_items(law, batch, candidate, on_cpu=self.room.on_cpu)
        return WorstStep(
            candidate=candidate,
            batch=batch,
            request=request,
            law=law,
            peak=peak(law, batch.monomials),
            host_bytes=sum(held.values()),
        )

    def estimate(self, step: WorstStep) -> MemoryEstimate:
        """Estimate all that a candidate asks of the machine, in every phase and with fragmentation.

        The answer is kept like a profile.
        """
        candidate, accumulation = step.candidate, step.candidate.gradient_accumulation_steps
        drawn = self.batches.drawn_steps(candidate, micro_steps=step.request.candidate.gradient_accumulation_steps)
        settings = parse_settings(allocator_conf(candidate.tuned_allocator))
        question = {
            "profile": describe_request(step.request),
            "layers": self.training.facts.layers,
            "candidate": candidate.to_dict(),
            "allocator": asdict(settings),
            "steps": [[each.monomials for each in batches] for batches in drawn],
        }

        def answer() -> dict[str, Any]:
            profile, replayed = self.laws.deep_profile(step.request), None
            if self.training.hardware.kind == "cuda":
                replayed = replay(profile, drawn, accumulation=accumulation, settings=settings)
            return demand_of(profile, step.law, replayed, candidate=candidate, batch=step.batch).to_dict()

        kept = self.laws.profiles.remember("estimates", question, answer)
        return MemoryEstimate(demand=demand_from_dict(kept), room=self.room)
