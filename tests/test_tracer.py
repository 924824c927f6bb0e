"""The tracer: what comes back from the process that traces, and that it is gone afterwards."""

from typing import Any

import psutil
import pytest
from transformers import LlamaConfig

from autotune import tracer
from autotune.core.candidate import Candidate
from autotune.core.recipe import Recipe
from autotune.errors import NotPredicted
from autotune.trace import TraceRequest, trace

CANDIDATE = Candidate(max_length=64, per_device_train_batch_size=1, gradient_accumulation_steps=1, method="full")


def asked(**config: Any) -> dict[str, Any]:
    """A step of a small llama, deep enough for two traces."""
    small = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    values = LlamaConfig(**{**small, "num_hidden_layers": 7, **config}).to_dict()
    return {"config": values, "candidate": CANDIDATE, "recipe": Recipe(method="full"), "masked": False}


def test_two_processes_find_what_one_finds() -> None:
    """Both traces of a request beside each other, and nobody left behind."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    assert tracer.trace_apart(asked()) == trace(TraceRequest(**asked()))
    left = {child.pid for child in psutil.Process().children(recursive=True)} - before
    assert len(left) <= 2  # the fork server and its resource tracker, where this was their first use


def test_what_cannot_be_traced_says_why() -> None:
    """The reason crosses the process."""
    with pytest.raises(NotPredicted, match="a model without layers"):
        tracer.trace_apart(asked(num_hidden_layers=0))
