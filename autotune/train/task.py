"""What a worker is told to do: plain data that crosses a pipe, from which the worker builds everything."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from autotune.core.candidate import Candidate
from autotune.core.recipe import Recipe
from autotune.core.trials.racing import Pace

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """How long a trial measures.

    budget_s: seconds for the whole trial, loading included; it ends after the step that passes it.
    precision: relative standard error of the rate that is good enough, once there are `least_steps` that took `least_s`
        seconds: steps in a row meet the machine in one mood, and three may agree by chance.
    least_steps, most_steps: measured optimizer steps, besides the warm-up; the budget ends a trial before
        `least_steps` only when two steps are measured, because one has no error.
    worst_first: warm up on the step whose largest micro-batch is the smallest, then on the one whose is the largest, so
        that the peak is that of the worst batch: second, because the optimizer's states are only there after the first.
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
        """Steps before those that are measured; on CUDA the second finds libraries and allocator in a steady state."""
        return 2 if self.worst_first or device == "cuda" else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """How a run saves: a checkpoint every `save_steps` optimizer steps and at the end, the last two kept.

    A run goes on from the last checkpoint that it finds in its directory.
    """

    save_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Compare:
    """The first optimizer steps, each on the samples that any candidate's step of that number has.

    order: 0 for the order in which the samples are drawn; another number for one of its own, of the same samples.
    """

    steps: int
    order: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One training, to be measured (a trial), finished (a run), or compared with another.

    model_path: what `from_pretrained` takes. tokenized_path: the Arrow cache of data/describe.py.
    output_dir: where Trainer may write. log_path: where the worker's own output goes.
    random_weights: of `model_path` read the configuration and the tokenizer alone, and draw the weights on the device:
        what a dense model takes of memory and time does not depend on their values.
    allocator_limit_bytes: most that torch's CUDA allocator may hold, as on a smaller GPU; None takes the whole device.
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
    random_weights: bool = False
    allocator_limit_bytes: int | None = None


def last_checkpoint(output_dir: Path) -> Path | None:
    """The last checkpoint of a run that was written to its end; None when there is none.

    Trainer writes a checkpoint in place, its state last (transformers 5.23), so one that was interrupted has none.
    """
    whole = (path for path in output_dir.glob("checkpoint-*") if (path / "trainer_state.json").exists())
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def environment(tuned_allocator: bool, device: Device, device_uuid: str | None) -> Mapping[str, str]:
    """Variables that must be set before the worker's process starts; a worker serves only tasks that share them.

    On CUDA one device is pinned and the allocator set; on a CPU it is told after the fork (malloc.keep_pages), and no
    GPU is to be seen.
    """
    shared = {
        "TOKENIZERS_PARALLELISM": "false",  # rows are tokenized already; a fork would only warn
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
    """The allocator's settings on CUDA: the user's, but for `expandable_segments`, which follows the candidate's knob.

    torch 2.13 reads these of PYTORCH_ALLOC_CONF, and of PYTORCH_CUDA_ALLOC_CONF only where that is not set.
    """
    user = os.environ.get("PYTORCH_ALLOC_CONF", os.environ.get("PYTORCH_CUDA_ALLOC_CONF", ""))
    others = [part for part in re.split(r",(?![^\[]*\])", user) if part.strip() and "expandable_segments" not in part]
    return ",".join((*others, f"expandable_segments:{tuned_allocator}"))  # off means off, too
