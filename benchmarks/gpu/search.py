"""`gpu.suite search`: a search on the GPU at hand, and its answer side by side with what people start from.

People start from TRL's defaults, from the largest micro-batch that fits, and from what Unsloth, Axolotl and
LLaMA-Factory publish for such a training. All have as many samples per optimizer step (packed: the nearest whole rows)
and go through the same trainer, so their knobs are compared and not their kernels. Weights are drawn at random. The
search's trials, the model and each training stay in the directory of the rows, so the same command goes on where it
stopped. Leaves out the search itself (autotune/search/search.py) and what is published (published.py).
"""

import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from autotune.core.arithmetic import divisors
from autotune.core.candidate import Candidate, Fidelity
from autotune.core.decode import encode
from autotune.core.hardware import Hardware
from autotune.core.outcome import Outcome, outcome_from_dict, outcome_to_dict
from autotune.core.recipe import Method, Recipe
from autotune.core.space.context import Context
from autotune.core.space.fidelity import samples_per_step
from autotune.core.space.legality import first_broken
from autotune.core.space.references import baseline
from autotune.machine.installed import installed
from autotune.machine.probe import probe
from autotune.models.find import resolve_architecture
from autotune.search.display import SearchDisplay
from autotune.search.journal import Journal
from autotune.search.predictions import Predictions
from autotune.search.request import SearchRequest, identity_of, predictions_of, workload_of
from autotune.search.result import Result, read_result
from autotune.search.search import search
from autotune.train.task import Task
from autotune.train.workers import Workers
from benchmarks.command import say
from benchmarks.gpu.cases import QWEN05, QWEN7, SEED, TINY_MODEL, write_model
from benchmarks.gpu.predictions import DONE
from benchmarks.gpu.published import FULL_0_5B, LORA_7B, Settings, as_published
from benchmarks.rows import RowFile, commit_of_checkout
from benchmarks.trainings import Performs, kinds_and_rates, over, side_by_side, task_of_steps

FILE = "gpu_search.jsonl"
STEPS = 6  # that are measured of each training in a round
ROUNDS = 2
LIMIT_S = 90.0  # for one training
SAMPLES = 16  # of an optimizer step
IDENTITY = ("device", "uuid", "versions", "name", "data_fingerprint")  # of rows that belong together
FOUND, DEFAULTS, LARGEST = "found", "TRL's defaults", "largest batch that fits"


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """A training to search for. published: what people start from with such a training."""

    model: str
    method: Method
    published: Settings


SEARCHES: Mapping[str, Search] = {
    "qwen_7b_lora": Search(model=QWEN7, method="lora", published=LORA_7B),
    "qwen_0_5b_full": Search(model=QWEN05, method="full", published=FULL_0_5B),
    "tiny": Search(model=TINY_MODEL, method="full", published=FULL_0_5B),
}


class TimeIsUp(KeyboardInterrupt):
    """The budget has ended. It stops the search as Ctrl-C does."""


@contextmanager
def ending(deadline: float) -> Iterator[None]:
    """Raise TimeIsUp inside the context when the deadline comes, as time.monotonic() counts. For the main thread."""

    def stop(*_: Any) -> None:
        raise TimeIsUp

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(0.001, deadline - time.monotonic()))  # 0 would mean never
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(
    name: str,
    *,
    data: Path,
    minutes: float,
    out: Path,
    home: Path,
    deadline: float,
    use_gpu: bool,
    commit: str | None,
) -> dict[str, Any]:
    """Search, measure all side by side, and append the row; what an earlier call has done stands.

    deadline: as time.monotonic() counts. The next call begins again what it cut off, and `left` names the search.
    Raises AutotuneError where a search does, and for a search of something else in `out`.
    """
    try:
        with ending(deadline):
            hardware = probe(home=home, use_gpu=use_gpu, progress=say)
            request = request_of(name, data=data, minutes=minutes, out=out, home=home)
            return {**search_and_compare(name, request, hardware, out / FILE, commit), "left": []}
    except TimeIsUp:
        say("the time is up; the same command goes on")
        return {"name": name, "left": [name], "rows": []}


def request_of(name: str, *, data: Path, minutes: float, out: Path, home: Path) -> SearchRequest:
    """Return the request of the search, whose directory and model are made under `out`."""
    wanted, directory = SEARCHES[name], out.absolute() / "gpu_search" / name
    return SearchRequest(
        model=model_of(wanted.model, directory / "model", home),
        data=str(data),
        columns={},
        recipe=Recipe(method=wanted.method, effective_batch_size=SAMPLES),
        fidelity=Fidelity.close,
        fixed={},
        minutes=minutes,
        trials=None,
        sampler="roofline",
        seed=SEED,
        out=directory / "search",
        home=home,
        compares_losses=False,  # losses of random weights say nothing
    )


def model_of(name: str, directory: Path, home: Path) -> str:
    """Return the directory of a model without weights, which is made whole or not at all; `tiny` is known by name."""
    if name == TINY_MODEL:
        return name
    if not directory.exists():
        fresh = directory.with_suffix(".fresh")
        write_model(resolve_architecture(name, None, home=home, progress=say)[0], fresh)
        (fresh / "model.safetensors").touch()  # a search asks for weights, though its trials draw theirs
        fresh.rename(directory)
    return str(directory)


def search_and_compare(
    name: str, request: SearchRequest, hardware: Hardware, path: Path, commit: str | None
) -> dict[str, Any]:
    """Return the row of a search, from the file or made now, and as `rows` those of its trainings."""
    stack, workload = installed(), workload_of(request, progress=say)
    about = {
        "device": hardware.name,
        "uuid": hardware.uuid,
        "driver": hardware.driver,
        "versions": dict(stack.versions),
        "name": name,
        "data_fingerprint": workload.data.fingerprint,
        "commit": commit or commit_of_checkout(),
    }
    file = RowFile(path=path, about=about, identity=IDENTITY)
    context = Context(installed=stack, hardware=hardware, workload=workload)
    done = file.own(kind="comparison")
    row = done[-1] if done else compare(request, context, SEARCHES[name].published, file)
    return {**row, "rows": file.own(kind="training")}


def compare(request: SearchRequest, context: Context, published: Settings, file: RowFile) -> dict[str, Any]:
    """Search, measure the answer beside the others, append the row and return it."""
    result, workload, hardware = found_by(request, context), context.workload, context.hardware
    predictions = predictions_of(request, workload, hardware, say)
    rivals = {FOUND: result.best.candidate, **settings_of(context, predictions, published)}
    tasks = {name: task_of(each, request, context) for name, each in rivals.items()}
    with Workers(device=hardware.kind, device_uuid=hardware.uuid, memory_limit_bytes=None) as workers:
        rounds = side_by_side(tasks, Kept(workers, file), rounds=ROUNDS, limit_s=LIMIT_S)
    return file.add(
        {
            "kind": "comparison",
            "answer": result.answer,
            "wall_s": encode(result.wall_s),
            "tried": sum(trial.role == "search" for trial in result.trials),
            "space": encode(result.space),
            **compared(rivals, rounds, context),
        }
    )


def found_by(request: SearchRequest, context: Context) -> Result:
    """Return the result of the search, which goes on where it stopped. Raises UsageError if another one is there."""
    file = request.out / "result.json"
    if not file.exists():
        display = SearchDisplay(Console(stderr=True))
        return search(request, context.workload, context.hardware, display=display)
    Journal(request.out, identity_of(request, context.workload, context.hardware, context.installed)).close()
    return read_result(file)


def settings_of(context: Context, predictions: Predictions, published: Settings) -> dict[str, Candidate]:
    """Return what people start from on this machine with this data; settings that are not legal here are left out.

    Whether a published example fits is for its training to show.
    """
    defaults = baseline(workload=context.workload, hardware=context.hardware, installed=context.installed)[0]
    found = {DEFAULTS: defaults}
    for rows in divisors(SAMPLES)[::-1]:
        largest = replace(defaults, per_device_train_batch_size=rows, gradient_accumulation_steps=SAMPLES // rows)
        if predictions.predict(largest).fits:
            found[LARGEST] = largest
            break
    for name, knobs in published.items():
        candidate = as_published(knobs, defaults, context)
        if (rule := first_broken(candidate, context)) is None:
            found[name] = candidate
        else:
            say(f"{name} is left out: {rule.reason}")
    return found


def task_of(candidate: Candidate, request: SearchRequest, context: Context) -> Task:
    """Return a few steps of a candidate on random weights."""
    return task_of_steps(
        candidate,
        request.recipe,
        request.out.parent,
        steps=STEPS,
        limit_s=LIMIT_S,
        model_path=context.workload.model.path,
        tokenized_path=context.workload.data.tokenized_path,
        seed=request.seed,
        device=context.hardware.kind,
        random_weights=True,
    )


class Kept:
    """Workers that keep their outcomes in a file, so that nothing is measured twice.

    A training is recognized by its candidate and its seed, which is another in each round.
    """

    def __init__(self, workers: Performs, file: RowFile) -> None:
        self.workers = workers
        self.file = file

    def perform(self, task: Task, *, limit_s: float | None) -> Outcome:
        """Return the outcome of a task, from the file if it is an answer there."""
        training = {"kind": "training", "candidate": task.candidate.to_dict(), "seed": task.seed}
        for there in self.file.own(**training):
            if there["outcome"]["kind"] in DONE:
                return outcome_from_dict(there["outcome"])
        outcome = self.workers.perform(task, limit_s=limit_s)
        self.file.add({**training, "outcome": outcome_to_dict(outcome)})
        return outcome


def compared(
    rivals: Mapping[str, Candidate], rounds: Sequence[Mapping[str, Outcome]], context: Context
) -> dict[str, Any]:
    """Return the rates of all, and how much faster the answer is than each rival that ran in every round."""
    return {
        "rivals": {
            name: {
                "candidate": candidate.to_dict(),
                "samples_per_step": samples_per_step(candidate, context),
                **kinds_and_rates(rounds, name),
            }
            for name, candidate in rivals.items()
        },
        "speedups": {name: over(rounds, FOUND, name) for name in rivals if name != FOUND},
    }
