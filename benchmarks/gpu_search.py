"""`gpu_suite.py search`: a search on the GPU at hand, and what it found side by side with what people start from.

Those are TRL's defaults, the largest micro-batch that fits, and the settings that Unsloth, Axolotl and LLaMA-Factory
publish for a model of this size, all with as many samples per optimizer step, through the same trainer: what is
compared are their knobs, not their kernels. Weights are drawn at random. Leaves out the search itself
(autotune/search.py).
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gpu_cases import QWEN05, QWEN7, SEED, TINY_MODEL, write_model
from rich.console import Console
from rounds import kinds_and_rates, over, side_by_side
from rows import append, commit_of_checkout, now

from autotune.core.candidate import Candidate, Fidelity, differences
from autotune.core.fidelity import divisors
from autotune.core.hardware import Hardware
from autotune.core.outcome import Outcome
from autotune.core.recipe import Method, Recipe
from autotune.core.space import baseline, enumerate_space
from autotune.core.workload import Workload
from autotune.display import SearchDisplay
from autotune.errors import AutotuneError
from autotune.installed import Installed, installed
from autotune.models import resolve_architecture
from autotune.plan import Plan
from autotune.probe import probe
from autotune.search import search
from autotune.search_request import SearchRequest, forecaster_of, workload_of
from autotune.task import Measure, Task
from autotune.trial import Workers

FILE = "gpu_search.jsonl"
STEPS = 6  # measured ones of each training in a round
ROUNDS = 2
LIMIT_S = 90.0  # for one training
SAMPLES = 16  # of an optimizer step
FOUND, DEFAULTS, LARGEST = "found", "TRL's defaults", "largest batch that fits"
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    # Its notebooks for Qwen2.5 7B: batches of 2, its own checkpointing, 8-bit AdamW, packing off.
    "Unsloth's example": {
        "per_device_train_batch_size": 2,
        "checkpointing": "full",
        "optimizer": "adamw_8bit",
        "batching": "random",
    },
    # axolotl-ai-cloud/axolotl examples/llama-3/lora-8b.yml
    "Axolotl's example": {
        "per_device_train_batch_size": 2,
        "checkpointing": "full",
        "optimizer": "adamw_8bit",
        "batching": "pack_bfd",
    },
    # hiyouga/LLaMA-Factory examples/train_lora/llama3_lora_sft.yaml; checkpointing is on unless it is disabled
    "LLaMA-Factory's example": {
        "per_device_train_batch_size": 1,
        "checkpointing": "full",
        "optimizer": "adamw_torch",
        "batching": "random",
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What is searched for."""

    model: str
    method: Method


SEARCHES: Mapping[str, Search] = {
    "qwen_7b_lora": Search(model=QWEN7, method="lora"),
    "qwen_0_5b_full": Search(model=QWEN05, method="full"),
    "tiny": Search(model=TINY_MODEL, method="full"),
}


def run(
    name: str,
    *,
    data: Path,
    minutes: float,
    out: Path,
    home: Path,
    use_gpu: bool,
    commit: str | None,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Search, measure all side by side, and append the row. Raises AutotuneError where a search does."""
    wanted = SEARCHES[name]
    hardware = probe(home=home, use_gpu=use_gpu, progress=progress)
    config, _ = resolve_architecture(wanted.model, None, home=home, progress=progress)
    with tempfile.TemporaryDirectory() as scratch:
        model = wanted.model
        if model != TINY_MODEL:
            write_model(config, Path(scratch, "model"))
            Path(scratch, "model", "model.safetensors").touch()  # a search asks for weights; its trials draw theirs
            model = str(Path(scratch, "model"))
        request = SearchRequest(
            model=model,
            data=str(data),
            columns={},
            recipe=Recipe(method=wanted.method, effective_batch_size=SAMPLES),
            fidelity=Fidelity.close,
            fixed={},
            hardware=hardware,
            minutes=minutes,
            trials=None,
            sampler="roofline",
            seed=SEED,
            out=Path(scratch, "search"),
            home=home,
            compares_losses=False,  # there is nothing to learn from weights that nobody trained
        )
        workload, stack = workload_of(request, progress=progress), installed()
        plan = Plan(forecaster=forecaster_of(request, workload, progress), progress=progress)
        settings = settings_of(workload, hardware, stack, plan, progress)
        result = search(request, display=SearchDisplay(Console(stderr=True)))
        rivals = {FOUND: Candidate(**result["best"]["candidate"]), **settings}
        tasks = {name: task_of(each, request, workload, Path(scratch)) for name, each in rivals.items()}
        with Workers(device=hardware.kind, device_uuid=hardware.uuid, memory_limit_bytes=None) as workers:
            rounds = side_by_side(tasks, workers, rounds=ROUNDS, limit_s=LIMIT_S, say=progress)
    row = {
        "at": now(),
        "name": name,
        "device": hardware.name,
        "driver": hardware.driver,
        "versions": dict(stack.versions),
        "commit": commit or commit_of_checkout(),
        "data_fingerprint": workload.data.fingerprint,
        "answer": result["answer"],
        "wall_s": result["wall_s"],
        "tried": sum(trial["role"] == "search" for trial in result["trials"]),
        "space": result["space"],
        **compared(rivals, rounds),
    }
    append(out / FILE, row)
    return {**row, "rows": result["trials"]}


def settings_of(
    workload: Workload, hardware: Hardware, stack: Installed, plan: Plan, progress: Callable[[str], None]
) -> dict[str, Candidate]:
    """What people start from, as this machine and this data would have it; what is not legal here is told and left out.

    Each differs from TRL's defaults as little as its settings allow.
    """
    here: dict[str, Any] = {"workload": workload, "hardware": hardware, "installed": stack}
    defaults = baseline(**here)[0]
    found = {DEFAULTS: defaults}
    for rows in divisors(SAMPLES)[::-1]:
        largest = replace(defaults, per_device_train_batch_size=rows, gradient_accumulation_steps=SAMPLES // rows)
        if plan.fits(largest):
            found[LARGEST] = largest
            break
    for name, knobs in PUBLISHED.items():
        try:
            pins = {**knobs, "tuned_allocator": False}
            legal = enumerate_space(**here, fidelity=Fidelity.close, fixed=pins).candidates
        except AutotuneError as error:
            progress(f"{name} is left out: {'; '.join(error.problems)}")
            continue
        found[name] = min(legal, key=lambda candidate: len(differences(candidate, defaults)))
    return found


def task_of(candidate: Candidate, request: SearchRequest, workload: Workload, scratch: Path) -> Task:
    """A few steps of a candidate, on weights that are drawn."""
    return Task(
        candidate=candidate,
        recipe=request.recipe,
        model_path=workload.model.path,
        tokenized_path=workload.data.tokenized_path,
        seed=request.seed,
        device=request.hardware.kind,
        output_dir=str(scratch / "out"),
        log_path=str(scratch / "log.txt"),
        work=Measure(budget_s=LIMIT_S, precision=0.0, least_steps=STEPS, most_steps=STEPS),
        random_weights=True,
    )


def compared(rivals: Mapping[str, Candidate], rounds: Sequence[Mapping[str, Outcome]]) -> dict[str, Any]:
    """The rates of all, and how much faster what was found is than each that ran in every round."""
    speedups = {name: over(rounds, FOUND, name) for name in rivals if name != FOUND}
    return {
        "rivals": {
            name: {"candidate": candidate.to_dict(), **kinds_and_rates(rounds, name)}
            for name, candidate in rivals.items()
        },
        "speedups": {name: None if found is None else asdict(found) for name, found in speedups.items()},
    }
