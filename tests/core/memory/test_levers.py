"""What of a peak grows, and what would lower it: on the hand-made step of test_profile.py."""

from autotune.core.batches.batches import Batch
from autotune.core.candidate import Candidate
from autotune.core.memory.law import memory_law
from autotune.core.memory.levers import fixed_bytes, levers
from tests.core.step.test_profile import step

LAW = memory_law(step(5), layers=5, accumulation=1)
ONE_POSITION = Batch(rows=1, positions=1, labels=0)
MANY = Batch(rows=2, positions=500, labels=998)


def candidate(**knobs: object) -> Candidate:
    values = {"max_length": 500, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "method": "full"}
    return Candidate(**{**values, **knobs})  # type: ignore[arg-type]


def test_what_grows_computed_by_hand() -> None:
    """A thousand positions: the peak is in the backward of the head, with the weights alone beside it."""
    assert fixed_bytes(LAW, MANY) == 1000
    assert fixed_bytes(LAW, ONE_POSITION) == 1520  # all but what is handed down: clipping


def test_levers_computed_by_hand() -> None:
    """50 bytes a position of activations, 50 of logits and 5 of workspace over 1,000; a fused head's tile is larger."""
    found = levers(LAW, MANY, candidate(), full_logits=True)
    assert [(each.words, each.least_bytes) for each in found] == [
        ("candidate.per_device_train_batch_size=1", 53_500),
        ("candidate.checkpointing=full", 56_000),
    ]


def test_a_lever_that_is_pulled_already_is_not_named() -> None:
    """Checkpointed, with a fused head, at one row: nothing but the optimizer is left."""
    done = candidate(checkpointing="full", per_device_train_batch_size=1)
    assert levers(LAW, ONE_POSITION, done, full_logits=False) == ()
