"""A task: what a worker is asked to train, as plain data that crosses a pipe."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from autotune.core.candidate import Candidate
from autotune.core.hardware import Device
from autotune.core.recipe import Recipe
from autotune.core.trials.racing import Pace


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """How long a trial measures.

    budget_s: seconds for the whole trial, loading included. The trial ends after the step that passes it.
    precision: relative standard error of the rate that is good enough. It counts once `least_steps` steps took
        `least_s` seconds: a few steps in a row meet the same load of the machine, and may agree by chance.
    least_steps, most_steps: measured optimizer steps, without the warm-up. The budget may end a trial after fewer than
        `least_steps`, but not before two, because one step has no standard error.
    worst_first: warm up on two steps: first the step whose largest micro-batch is the smallest of the epoch, then the
        step that has the largest of the epoch. The worst batch then comes when the optimizer's states exist, which is
        after the first step, and the peak is measured with both.
    pace: the trial ends when it is slower than this; None lets it go on.
    """

    budget_s: float
    precision: float = 0.03
    least_steps: int = 3
    least_s: float = 3.0
    most_steps: int = 50
    worst_first: bool = True
    pace: Pace | None = None

    def warmup_steps(self, device: Device) -> int:
        """Count the steps before the measured ones. On CUDA, libraries and allocator are steady after the second."""
        return 2 if self.worst_first or device == "cuda" else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """How a run saves: a checkpoint every `save_steps` optimizer steps and at the end, the last two kept.

    A run goes on from the last checkpoint that it finds in its directory.
    """

    save_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Compare:
    """Train the first optimizer steps, for a comparison of losses. Each step has the same samples for every candidate.

    order: 0 for the order in which the samples are drawn. Any other number gives another order of the same samples.
    learned_within: only samples with a label among so many first tokens are drawn; None draws from all. It is the
        shortest length at which one of the compared candidates cuts, so that each of them trains every sample.
    """

    steps: int
    order: int = 0
    learned_within: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One training, to be measured (a trial), finished (a run), or compared with another.

    model_path: what `from_pretrained` takes. tokenized_path: the Arrow cache of data/describe.py.
    output_dir: where Trainer may write. log_path: where the worker's own output goes.
    not_adapted: of the model's facts: modules that LoRA leaves out when it adapts all linear ones.
    random_weights: read only the configuration and the tokenizer of `model_path`, and draw the weights on the device.
        The memory and time of a dense model do not depend on the values of its weights.
    allocator_limit_bytes: most that torch's CUDA allocator may hold, to imitate a smaller GPU; None: the whole device.
    """

    candidate: Candidate
    recipe: Recipe
    model_path: str
    tokenized_path: str
    seed: int
    device: Device
    output_dir: str
    log_path: str
    goal: Measure | Train | Compare
    not_adapted: tuple[str, ...] = ()
    random_weights: bool = False
    allocator_limit_bytes: int | None = None


def last_checkpoint(output_dir: Path) -> Path | None:
    """Find the last complete checkpoint of a run; None without one.

    Trainer writes a checkpoint's state last (transformers 5.23), so an interrupted checkpoint has no state file.
    """
    whole = (path for path in output_dir.glob("checkpoint-*") if (path / "trainer_state.json").exists())
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def environment(tuned_allocator: bool, device: Device, device_uuid: str | None) -> Mapping[str, str]:
    """Return the environment variables of a worker's process. A worker serves only tasks that ask for the same ones.

    On CUDA they choose one device and set the allocator. On a CPU they hide every GPU. The CPU's allocator is set after
    the fork (malloc.keep_pages).
    """
    shared = {
        "TOKENIZERS_PARALLELISM": "false",  # the rows are tokenized already; tokenizers would only warn of the fork
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "warning",
    }
    if device == "cpu":
        return {**shared, "CUDA_VISIBLE_DEVICES": ""}
    allocator = {"PYTORCH_ALLOC_CONF": allocator_conf(tuned_allocator)}
    visible = {"CUDA_VISIBLE_DEVICES": device_uuid} if device_uuid else {}
    return {**shared, **allocator, **visible}


def allocator_conf(tuned_allocator: bool) -> str:
    """Return the settings of torch's CUDA allocator: the user's, with the candidate's `expandable_segments`.

    torch 2.13 reads PYTORCH_ALLOC_CONF, and PYTORCH_CUDA_ALLOC_CONF only where the first is not set.
    """
    user = os.environ.get("PYTORCH_ALLOC_CONF", os.environ.get("PYTORCH_CUDA_ALLOC_CONF", ""))
    others = [part for part in re.split(r",(?![^\[]*\])", user) if part.strip() and "expandable_segments" not in part]
    return ",".join((*others, f"expandable_segments:{tuned_allocator}"))  # also when it is off
