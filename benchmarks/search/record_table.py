"""Exhaustive truth: measure every legal candidate of a space as a search would, and keep every trial.

    python -m benchmarks.search.record_table tiny-demo [--minutes N] [key=value ...]
    python -m benchmarks.search.record_table smollm2-gsm8k data=gsm8k_train.jsonl --minutes 60
    python -m benchmarks.search.record_table model=tiny data=demo out=FILE
    python -m benchmarks.search.record_table --summary FILE [--json]

A space is a command line of `autotune search`. It may begin with the name of one below; further words add to its words
or take their place, and `null` leaves a key to the search. Without a name, `out=FILE` or `--out FILE` says where the
table goes.

First come the references that a search starts with (TRL's defaults, and settings by hand). Then comes every candidate
once, in random order. In further rounds, each in another order, the leaders are measured again until the standard error
of their rates is what the space asks for. Each round has a seed of its own, so that it draws other steps of the epoch:
the same steps would err alike every time. The machine should have nothing else to do. If it drifts all the same, the
reference product that each trial times before and after corrects the rates. Each row is on the disk before the next
trial begins: stopped or killed, the same command goes on.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from autotune.core.candidate import Candidate, short_name
from autotune.core.outcome import Measured, Outcome, outcome_to_dict
from autotune.core.space.enumerate import enumerate_space
from autotune.core.space.references import baseline, by_hand
from autotune.core.trials.budget import Budget
from autotune.errors import UsageError
from autotune.machine.installed import installed
from autotune.search.request import workload_of
from autotune.train.task import Measure, Task
from benchmarks.command import Answer, command, say
from benchmarks.rows import RESULTS, append, now, plain, read
from benchmarks.search.commands import hardware_of, request_of
from benchmarks.search.table import References, Table, load, next_trial, summarize
from benchmarks.trainings import workers_on

OF_THE_BEGINNING = ("begun", "probed")  # keys of a header that may change when a table goes on
DIGITS = 6  # significant ones of a measured number; its noise is in the second


SPACES: Mapping[str, tuple[str, ...]] = {
    # With eager attention there are 714 candidates, hours of trials.
    "tiny-demo": ("model=tiny", "data=demo", "candidate.attention=sdpa"),
    # Four samples a step keep a trial within a minute or two.
    "smollm2-gsm8k": ("model=smollm2", "recipe.effective_batch_size=4", "candidate.optimizer=adamw_torch_fused"),
    # One row of 300 is longer than 2048 tokens. Adapters are few, so any optimizer takes no time. The base is frozen,
    # and in the type that it was published in.
    "smollm2-glaive": (
        "model=smollm2",
        "recipe.method=lora",
        "recipe.effective_batch_size=4",
        "candidate.max_length=2048",
        "candidate.attention=sdpa",
        "candidate.optimizer=adamw_torch_fused",
        "candidate.weights_dtype=bfloat16",
    ),
}
STANDARD_ERROR = {"tiny-demo": 0.01}  # of the leaders' rates, where it is not USUAL_ERROR
USUAL_ERROR = 0.02


def options(parser: argparse.ArgumentParser) -> None:
    """Say what is measured, for how long, and where the table goes."""
    known = ", ".join(SPACES)
    parser.add_argument(
        "words", nargs="*", metavar="key=value", help=f"words of a search, perhaps behind one of {known}"
    )
    parser.add_argument("--minutes", type=float, help="after which no trial begins; without it all is measured")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the table (default: results/table_SPACE.jsonl)")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="only say what is in a table")


def answer(arguments: argparse.Namespace) -> Answer:
    """Measure what a table lacks, or only read it; say what is in it. Raises UsageError."""
    if (arguments.summary is None) == (not arguments.words):
        raise UsageError("expected a space to measure, or --summary FILE")
    return summarize(load(arguments.summary or _record(arguments)))


def _record(arguments: argparse.Namespace) -> Path:
    started = time.monotonic()
    first, *rest = arguments.words
    name, words = (first, rest) if "=" not in first else ("", arguments.words)
    if name and name not in SPACES:
        raise UsageError(f"{name}: got no space, expected one of {', '.join(SPACES)}, or key=value")
    by_key = {word.partition("=")[0]: word for word in (*SPACES.get(name, ()), *words)}  # further words go first
    asked = by_key.pop("out", "").removeprefix("out=")
    if not (name or arguments.out or asked):
        raise UsageError("out: expected out=FILE, since no space is named")
    out = arguments.out or Path(asked or RESULTS / f"table_{name}.jsonl")
    words = list(by_key.values())
    request = request_of(words)
    workload, hardware = workload_of(request, progress=say), hardware_of(words)
    here: dict[str, Any] = {"workload": workload, "hardware": hardware, "installed": installed()}
    candidates = enumerate_space(**here, fidelity=request.fidelity, fixed=request.fixed).candidates
    budget = Budget(seconds=None if request.minutes is None else 60 * request.minutes, trials=request.trials)
    header = {
        "kind": "table",
        "name": name or out.stem,
        "model": workload.model.name,
        "data": workload.data.name,
        "data_fingerprint": workload.data.fingerprint,
        "recipe": asdict(request.recipe),
        "fidelity": request.fidelity.name,
        "fixed": dict(request.fixed),
        "candidates": len(candidates),
        "trial_budget_s": budget.share_s,
        "standard_error": STANDARD_ERROR.get(name, USUAL_ERROR),
        "seed": request.seed,
        "hardware": {"name": hardware.name, "cores": hardware.cores, "memory_bytes": hardware.memory_bytes},
        "versions": dict(here["installed"].versions),
        "begun": now(),
        "probed": hardware.to_dict(),
    }
    with workers_on(hardware) as workers, tempfile.TemporaryDirectory() as folder:

        def attempt(candidate: Candidate, number: int, table: Table) -> Outcome:
            baseline_s = max((r.outcome.wall_s for r in table.rows if r.role == "baseline"), default=budget.share_s)
            own = Path(folder, str(len(table.rows)))
            own.mkdir()
            task = Task(
                candidate=candidate,
                recipe=request.recipe,
                model_path=workload.model.path,
                not_adapted=workload.model.not_adapted,
                tokenized_path=workload.data.tokenized_path,
                seed=request.seed + number,
                device=hardware.kind,
                output_dir=str(own),
                log_path=str(own / "log.txt"),
                goal=Measure(budget_s=budget.share_s),
            )
            return workers.perform(task, limit_s=budget.trial_limit_s(0, baseline_s=baseline_s, reserve_s=0))

        whole = record(
            out,
            plain(header),
            candidates=candidates,
            references=(("baseline", baseline(**here)), ("by_hand", by_hand(**here))),
            attempt=attempt,
            may_go_on=lambda: arguments.minutes is None or time.monotonic() - started < 60 * arguments.minutes,
        )
    say("the table is whole" if whole else "the time is up; the same command goes on")
    return out


def record(
    file: Path,
    header: Mapping[str, Any],
    *,
    candidates: Sequence[Candidate],
    references: References,
    attempt: Callable[[Candidate, int, Table], Outcome],
    may_go_on: Callable[[], bool] = lambda: True,
) -> bool:
    """Append what the table in `file` lacks; return whether it is whole.

    header: its `seed` orders the trials, its `standard_error` ends them, `probed` is what a search knows beforehand.
    references: of each role the fallbacks, as a search tries them. attempt: tries a candidate in a round, given the
    table so far. Raises UsageError when the file is the table of something else.
    """
    if not read(file):  # not begun, or cut off in its header
        append(file, header)
    table = load(file)
    if changed := [key for key in header if key not in OF_THE_BEGINNING and table.header.get(key) != header[key]]:
        raise UsageError(*(f"{file}: is a table of another {key}; name another --out" for key in changed))
    while (trial := next_trial(table, candidates, references)) is not None:
        if not may_go_on():
            return False
        number, role, candidate = trial
        outcome = attempt(candidate, number, table)
        row = {
            "order": len(table.rows),
            "round": number,
            "role": role,
            "candidate": candidate.to_dict(),
            "outcome": outcome_to_dict(outcome),
            "measured_at": now(),
        }
        append(file, plain(row, lambda digits: float(f"{float(digits):.{DIGITS}g}")))
        rate = f"{outcome.useful_tokens_per_s:.1f} tokens/s " if isinstance(outcome, Measured) else ""
        say(f"{row['order']}: round {number} {outcome.kind} {rate}in {outcome.wall_s:.1f} s {short_name(candidate)}")
        table = load(file)
    return True


main = command(__doc__, answer, options)

if __name__ == "__main__":
    sys.exit(main())
