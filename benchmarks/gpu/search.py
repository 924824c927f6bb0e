"""`gpu_suite.py search`: a search on the GPU at hand, and what it found side by side with what people start from.

Those are TRL's defaults, the largest micro-batch that fits, and what Unsloth, Axolotl and LLaMA-Factory publish for
such a training, all with as many samples per optimizer step (packed: the nearest whole rows), through the same trainer:
what is compared are their knobs, not their kernels. Weights are drawn at random. The search's trials, the model and
each training stay in the directory of the rows, so that it goes on where it stopped. Leaves out the search itself
(autotune/search/search.py), and what is published (gpu_published.py).
"""

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from autotune.core.candidate import Candidate, Fidelity
from autotune.core.decode import encode
from autotune.core.hardware import Hardware
from autotune.core.outcome import Outcome, outcome_from_dict, outcome_to_dict
from autotune.core.recipe import Method, Recipe
from autotune.core.space.context import Context
from autotune.core.space.fidelity import divisors, samples_per_step
from autotune.core.space.legality import first_broken
from autotune.core.space.references import baseline
from autotune.machine.installed import installed
from autotune.machine.probe import probe
from autotune.models.find import resolve_architecture
from autotune.search.display import SearchDisplay
from autotune.search.document import Result, read_result
from autotune.search.journal import Journal
from autotune.search.predictions import Predictions
from autotune.search.request import SearchRequest, identity_of, predictions_of, workload_of
from autotune.search.search import search
from autotune.train.task import Measure, Task
from autotune.train.workers import Workers
from benchmarks.gpu.cases import QWEN05, QWEN7, SEED, TINY_MODEL, write_model
from benchmarks.gpu.published import FULL_0_5B, LORA_7B, Settings, as_published
from benchmarks.gpu.summary import DONE
from benchmarks.rows import append, commit_of_checkout, now, own_rows
from benchmarks.search.rounds import Performs, kinds_and_rates, over, side_by_side

FILE = "gpu_search.jsonl"
STEPS = 6  # measured ones of each training in a round
ROUNDS = 2
LIMIT_S = 90.0  # for one training
SAMPLES = 16  # of an optimizer step
IDENTITY = ("kind", "device", "uuid", "versions", "name", "data_fingerprint")  # of rows that belong together
FOUND, DEFAULTS, LARGEST = "found", "TRL's defaults", "largest batch that fits"


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What is searched for. published: what people start from with such a training."""

    model: str
    method: Method
    published: Settings


SEARCHES: Mapping[str, Search] = {
    "qwen_7b_lora": Search(model=QWEN7, method="lora", published=LORA_7B),
    "qwen_0_5b_full": Search(model=QWEN05, method="full", published=FULL_0_5B),
    "tiny": Search(model=TINY_MODEL, method="full", published=FULL_0_5B),
}


class TimeIsUp(KeyboardInterrupt):
    """The budget has ended: to be stopped as Ctrl-C stops."""


@contextmanager
def ending(deadline: float) -> Iterator[None]:
    """Raise TimeIsUp in here when the deadline comes, as time.monotonic() counts. For the main thread."""

    def stop(*_: Any) -> None:
        raise TimeIsUp

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(0.001, deadline - time.monotonic()))  # 0 would be never
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
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Search, measure all side by side, and append the row; what an earlier call has done stands.

    deadline: as time.monotonic() counts; what it cuts off is begun again by the next call, and `left` names the search.
    Raises AutotuneError where a search does, and for a search of something else in `out`.
    """
    try:
        with ending(deadline):
            hardware = probe(home=home, use_gpu=use_gpu, progress=progress)
            request = request_of(name, data=data, minutes=minutes, out=out, home=home, progress=progress)
            return {**search_and_compare(name, request, hardware, out / FILE, commit, progress), "left": []}
    except TimeIsUp:
        progress("the time is up; the same command goes on")
        return {"name": name, "left": [name], "rows": []}


def request_of(
    name: str,
    *,
    data: Path,
    minutes: float,
    out: Path,
    home: Path,
    progress: Callable[[str], None],
) -> SearchRequest:
    """What is asked of the search. Its directory and its model are made under `out`."""
    wanted, directory = SEARCHES[name], out.absolute() / "gpu_search" / name
    return SearchRequest(
        model=model_of(wanted.model, directory / "model", home, progress),
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
        compares_losses=False,  # there is nothing to learn from weights that nobody trained
    )


def model_of(name: str, directory: Path, home: Path, progress: Callable[[str], None]) -> str:
    """What a search finds the model by: a directory without weights, whole or not there. `tiny` has its own."""
    if name == TINY_MODEL:
        return name
    if not directory.exists():
        fresh = directory.with_suffix(".fresh")
        write_model(resolve_architecture(name, None, home=home, progress=progress)[0], fresh)
        (fresh / "model.safetensors").touch()  # a search asks for weights; its trials draw theirs
        fresh.rename(directory)
    return str(directory)


def search_and_compare(
    name: str,
    request: SearchRequest,
    hardware: Hardware,
    file: Path,
    commit: str | None,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """The row of one search, as it stands in the file, else made and appended; and as `rows` those of its trainings."""
    stack, workload = installed(), workload_of(request, progress=progress)
    about = {
        "device": hardware.name,
        "uuid": hardware.uuid,
        "driver": hardware.driver,
        "versions": dict(stack.versions),
        "name": name,
        "data_fingerprint": workload.data.fingerprint,
        "commit": commit or commit_of_checkout(),
    }
    done = own_rows(file, {**about, "kind": "comparison"}, IDENTITY)
    context = Context(installed=stack, hardware=hardware, workload=workload)
    row = done[-1] if done else compare(request, context, file, about, progress)
    return {**row, "rows": own_rows(file, {**about, "kind": "training"}, IDENTITY)}


def compare(
    request: SearchRequest,
    context: Context,
    file: Path,
    about: Mapping[str, Any],
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Search, measure what was found beside the others, and append the row. about: what each row says."""
    result, workload, hardware = found_by(request, context), context.workload, context.hardware
    predictions = predictions_of(request, workload, hardware, progress)
    rivals = {
        FOUND: result.best.candidate,
        **settings_of(context, predictions, SEARCHES[about["name"]].published, progress),
    }
    tasks = {name: task_of(each, request, context) for name, each in rivals.items()}
    with Workers(device=hardware.kind, device_uuid=hardware.uuid, memory_limit_bytes=None) as workers:
        rounds = side_by_side(tasks, Kept(workers, file, about), rounds=ROUNDS, limit_s=LIMIT_S, say=progress)
    row = {
        "kind": "comparison",
        "at": now(),
        **about,
        "answer": result.answer,
        "wall_s": encode(result.wall_s),
        "tried": sum(trial.role == "search" for trial in result.trials),
        "space": encode(result.space),
        **compared(rivals, rounds, context),
    }
    append(file, row)
    return row


def found_by(request: SearchRequest, context: Context) -> Result:
    """The result of the search, which goes on where it stopped. Raises UsageError where another one stands."""
    file = request.out / "result.json"
    if not file.exists():
        display = SearchDisplay(Console(stderr=True))
        return search(request, context.workload, context.hardware, display=display)
    Journal(request.out, identity_of(request, context.workload, context.hardware, context.installed)).close()
    return read_result(file)


def settings_of(
    context: Context, predictions: Predictions, published: Settings, progress: Callable[[str], None]
) -> dict[str, Candidate]:
    """What people start from, as this machine and this data would have it; what is not legal here is told and left out.

    Whether an example fits is for its training to show.
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
            progress(f"{name} is left out: {rule.reason}")
    return found


def task_of(candidate: Candidate, request: SearchRequest, context: Context) -> Task:
    """A few steps of a candidate, on weights that are drawn."""
    return Task(
        candidate=candidate,
        recipe=request.recipe,
        model_path=context.workload.model.path,
        tokenized_path=context.workload.data.tokenized_path,
        seed=request.seed,
        device=context.hardware.kind,
        output_dir=str(request.out.parent / "out"),
        log_path=str(request.out.parent / "log.txt"),
        goal=Measure(budget_s=LIMIT_S, precision=0.0, least_steps=STEPS, most_steps=STEPS),
        random_weights=True,
    )


class Kept:
    """Workers whose outcomes are kept in a file, so that what was measured is not measured again.

    A training is told by its candidate and its seed, which is another in each round. about: what a row says beside.
    """

    def __init__(self, workers: Performs, file: Path, about: Mapping[str, Any]) -> None:
        self.workers = workers
        self.file = file
        self.about = about

    def perform(self, task: Task, *, limit_s: float | None) -> Outcome:
        """The outcome of a task, from the file if it is an answer there."""
        training = {"candidate": task.candidate.to_dict(), "seed": task.seed}
        row = {"kind": "training", "at": now(), **self.about, **training}
        for there in own_rows(self.file, row, (*IDENTITY, *training)):
            if there["outcome"]["kind"] in DONE:
                return outcome_from_dict(there["outcome"])
        outcome = self.workers.perform(task, limit_s=limit_s)
        append(self.file, {**row, "outcome": outcome_to_dict(outcome)})
        return outcome


def compared(
    rivals: Mapping[str, Candidate], rounds: Sequence[Mapping[str, Outcome]], context: Context
) -> dict[str, Any]:
    """The rates of all, and how much faster what was found is than each that ran in every round."""
    speedups = {name: over(rounds, FOUND, name) for name in rivals if name != FOUND}
    return {
        "rivals": {
            name: {
                "candidate": candidate.to_dict(),
                "samples_per_step": samples_per_step(candidate, context),
                **kinds_and_rates(rounds, name),
            }
            for name, candidate in rivals.items()
        },
        "speedups": {name: None if found is None else asdict(found) for name, found in speedups.items()},
    }
