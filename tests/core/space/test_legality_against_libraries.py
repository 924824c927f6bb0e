"""The rules of core/space/legality.py against the installed trl, transformers, bitsandbytes and torch, on this machine.

Legal candidates really train a step, and whatever a rule says a library refuses is refused by that library. The rules
that show on a GPU alone are left to a machine that has one.
"""

import gc
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from bitsandbytes.optim import PagedAdamW8bit
from torch.nn.attention.flex_attention import flex_attention
from transformers import AutoModelForCausalLM, OpenAIGPTConfig
from trl import SFTConfig

from autotune.core.candidate import Candidate, Fidelity, short_name
from autotune.core.knobs import KNOBS
from autotune.core.space.enumerate import enumerate_space
from autotune.core.space.legality import DOCUMENTS_KEPT_APART, RULES
from autotune.core.workload import Workload
from autotune.machine.installed import installed
from autotune.train.sft import build_trainer
from autotune.train.task import Measure, Task
from benchmarks.rows import RESULTS, read
from benchmarks.search import documents_apart
from tests.core.examples import CPU, candidate

SAMPLES = 12
POOL = 2000  # candidates among which the sample is chosen

MakeTask = Callable[..., Task]


@pytest.fixture(autouse=True)
def light_steps() -> Iterator[None]:
    """One thread, as other tests may run beside these; and no full collection of all that is imported in each step."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(threads)


def sample(workload: Workload, *, seed: int) -> list[Candidate]:
    """Draw candidates of the free space that show every value of every knob at least once, SAMPLES at least.

    In fp32 where there is a choice: bf16 takes many times as long on some CPUs.
    """

    def is_plain(candidate: Candidate) -> bool:
        return (candidate.mixed_precision, candidate.weights_dtype) == ("no", "float32")

    space = enumerate_space(workload=workload, hardware=CPU, installed=installed(), fidelity=Fidelity.free, fixed={})
    pool = random.Random(seed).sample(space.candidates, POOL)
    unseen = {(knob, value) for knob in KNOBS for value in space.values[knob]}
    chosen: list[Candidate] = []
    while unseen:
        best = max(pool, key=lambda c: (sum((knob, getattr(c, knob)) in unseen for knob in KNOBS), is_plain(c)))
        shown = {(knob, getattr(best, knob)) for knob in KNOBS}
        assert shown & unseen, f"no candidate has {unseen}"
        chosen.append(best)
        unseen -= shown
    return chosen + list(filter(is_plain, pool))[: max(0, SAMPLES - len(chosen))]


def train_a_step(task: Task) -> float:
    """Construct the trainer and take one optimizer step; its loss."""
    trainer = build_trainer(task)
    trainer.args.max_steps = 1
    return float(trainer.train().training_loss)


def test_legal_candidates_train(workload: Workload, make_task: MakeTask) -> None:
    """Every sampled legal candidate constructs a trainer and takes a step with a plausible loss."""
    for legal in sample(workload, seed=0):
        loss = train_a_step(make_task(candidate=legal, goal=Measure(budget_s=600, most_steps=1)))
        assert 6.5 < loss < 7.5, short_name(legal)  # ln(1152) = 7.05: `tiny` knows nothing yet


def build(make_task: MakeTask, **changes: object) -> None:
    """Construct the trainer of a candidate as our worker does."""
    build_trainer(make_task(candidate=candidate(**changes)))


def old_model(**keywords: object) -> Any:
    """A causal model whose class has neither sdpa nor checkpointing."""
    config = OpenAIGPTConfig(vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    return AutoModelForCausalLM.from_config(config, **keywords)


def flex_backward_on_cpu() -> None:
    query = torch.zeros(1, 1, 8, 16, requires_grad=True)
    loss: Any = flex_attention(query, query, query)
    loss.sum().backward()


def compile_without_compiler() -> None:
    code = "import torch; torch.compile(lambda x: x + 1)(torch.ones(2))"
    environment = {**os.environ, "CXX": "/nowhere/g++"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(ended.stderr)


# How to ask the library for what each rule says it refuses, the nearest to a worker's own way that shows it.
ASK: dict[str, Callable[[MakeTask], object]] = {
    "padding_free_without_max_length": lambda make_task: build(make_task, batching="padding_free"),
    "tf32_needs_ampere": lambda make_task: SFTConfig(use_cpu=True, tf32=True),
    "model_cannot_checkpoint": lambda make_task: old_model().activation_checkpointing_enable(),
    "offloading_needs_a_gpu": lambda make_task: build(make_task, activation_offloading=True),
    "attention_of_the_model": lambda make_task: old_model(attn_implementation="sdpa"),
    "flash_attention_missing": lambda make_task: build(make_task, attention="flash_attention_2"),
    "flex_needs_a_gpu": lambda make_task: flex_backward_on_cpu(),
    "compile_needs_a_compiler": lambda make_task: compile_without_compiler(),
    "kernels_missing": lambda make_task: build(make_task, use_kernels=True),
}


@pytest.mark.parametrize("name", ASK)
def test_what_a_library_refuses(name: str, make_task: MakeTask) -> None:
    """The library raises the error that the rule quotes."""
    rule = next(rule for rule in RULES if rule.name == name)
    assert rule.refused_by is not None
    _library, kind, *message = rule.refused_by.split(": ")
    with pytest.raises(Exception) as refused:  # noqa: PT011  # which one is the rule's to say
        ASK[name](make_task)
    assert kind in f"{type(refused.value).__name__}: {refused.value}"
    assert ": ".join(message) in str(refused.value)


def test_every_refusal_that_a_cpu_shows_is_asked_for() -> None:
    """A new rule of the form 'the library refuses this' comes with its proof."""
    assert set(ASK) == {rule.name for rule in RULES if rule.refused_by is not None and rule.seen_on == "cpu"}


def test_fp16_autocast_on_a_cpu_is_silently_none() -> None:
    """accelerate takes fp16 on a CPU and computes without autocast and without a scaler."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, mixed_precision="fp16")
    AcceleratorState._reset_state(reset_partial_state=True)
    assert not accelerator.native_amp
    assert accelerator.scaler is None


def test_paging_on_a_cpu_is_silently_none() -> None:
    """bitsandbytes says in a warning alone that it pages nothing on a CPU."""
    weight = torch.nn.Parameter(torch.ones(128, 128))
    optimizer = PagedAdamW8bit([weight])
    weight.grad = torch.ones_like(weight)
    with pytest.warns(UserWarning, match="Paged optimizers are not supported on CPU"):
        optimizer.step()


def test_the_types_that_keep_documents_apart_are_those_of_the_rows() -> None:
    """The list claims what was measured with the installed transformers, for every type that it has."""
    rows = {row["model_type"]: row for row in read(RESULTS / "documents_apart.jsonl")}
    assert {model_type for model_type, row in rows.items() if row["apart"]} == DOCUMENTS_KEPT_APART
    assert rows.keys() == {*documents_apart.model_types()}
    assert {row["versions"]["transformers"] for row in rows.values()} == {version("transformers")}


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "opt"])
def test_packed_documents_are_kept_apart(model_type: str) -> None:
    """Behind another document a document has the logits that it has alone, for just the models that we pack."""
    assert documents_apart.examine(model_type)["apart"] == (model_type in DOCUMENTS_KEPT_APART)
