"""The tracer: what comes back from the process that traces, and that it is gone afterwards."""

import json
import math
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers import LlamaConfig

from autotune.core.candidate import Candidate
from autotune.core.recipe import Recipe
from autotune.core.step.profile import Profile
from autotune.errors import NotPredicted, UsageError
from autotune.trace import tracer
from autotune.trace.request import TraceRequest
from autotune.trace.trace import trace

PATIENCE_S = 120.0
INTERRUPTED = """
import signal, sys
from autotune.cli.main import main
from autotune.train import fork_server
signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored here
fork_server.PRELOAD = []  # so that the processes which trace are there at once, and import what they need themselves
sys.exit(main(sys.argv[1:]))
"""
LAYERS = 7  # of which five are traced, and six, apart
TRACING = 4  # processes: the fork server, its resource tracker, and the two that trace
CANDIDATE = Candidate(
    max_length=64,
    per_device_train_batch_size=1,
    gradient_accumulation_steps=1,
    method="full",
    checkpointing="off",
    mixed_precision="no",  # without casts there are fewer operators
)


def asked(**config: Any) -> TraceRequest:
    """A step of a small llama, deep enough for two traces."""
    small = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    values = LlamaConfig(**{**small, "num_hidden_layers": LAYERS, **config}).to_dict()
    return TraceRequest(config=values, candidate=CANDIDATE, recipe=Recipe(method="full"), masked=False)


@cache  # the truth of two tests
def traced_here(layers: int) -> Profile:
    """What this process finds by itself."""
    return trace(asked(num_hidden_layers=layers))


def test_two_processes_find_what_one_finds() -> None:
    """Both traces of a request beside each other, and nobody left behind."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    assert tracer.trace_apart(asked()) == traced_here(LAYERS)
    left = {child.pid for child in psutil.Process().children(recursive=True)} - before
    assert len(left) <= 2  # the fork server and its resource tracker, where this was their first use


def test_many_traces_at_once() -> None:
    """Each is what it is alone, in the order that was asked; what has not begun in time is left out."""
    several = [asked(), asked(num_hidden_layers=2), asked(num_hidden_layers=0)]
    first, second, third = tracer.trace_many(several, until=math.inf, processes=4)
    assert (first, second) == (traced_here(LAYERS), traced_here(2))
    assert isinstance(third, NotPredicted)
    assert list(tracer.trace_many(4 * [asked()], until=0.0, processes=2))[-1] is None


def test_an_interrupted_trace_leaves_no_process(tmp_path: Path) -> None:
    """Nor does one whose parent alone gets the signal, as a scheduler sends it."""
    (tmp_path / "config.json").write_text(json.dumps(asked().config))
    words = ("estimate", f"model={tmp_path}", "hardware=a100_80gb", f"home={tmp_path / 'home'}")
    with subprocess.Popen([sys.executable, "-c", INTERRUPTED, *words], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any("tracing a training step" in line for line in process.stderr)
        root = psutil.Process(process.pid)
        until = time.monotonic() + PATIENCE_S
        while len(children := root.children(recursive=True)) < TRACING and time.monotonic() < until:
            time.sleep(0.05)
        assert len(children) >= TRACING
        process.send_signal(signal.SIGINT)
        told = process.stderr.read()
    assert process.returncode == 130, told
    _, alive = psutil.wait_procs(children, timeout=PATIENCE_S)
    assert not alive


def test_what_cannot_be_traced_says_why() -> None:
    """The reason crosses the process."""
    with pytest.raises(NotPredicted, match="a model without layers"):
        tracer.trace_apart(asked(num_hidden_layers=0))


def test_modules_that_the_model_has_not_are_refused() -> None:
    """PEFT passes over a name in silence as long as another is found."""
    recipe = Recipe(method="lora", lora_target_modules=("q_proj", "nosuch"))
    expected = r"got nosuch, expected modules of the model, such as down_proj, gate_proj, .*q_proj"
    with pytest.raises(UsageError, match=expected):
        tracer.trace_apart(replace(asked(), candidate=replace(CANDIDATE, method="lora"), recipe=recipe))
