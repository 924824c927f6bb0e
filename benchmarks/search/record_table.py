"""Exhaustive truth: measure every legal candidate of a space as a search would, and keep every trial.

    python -m benchmarks.search.record_table tiny-demo [--minutes N] [--out FILE] [key=value ...] [--why TEXT]
    python -m benchmarks.search.record_table smollm2-gsm8k data=gsm8k_train.jsonl --minutes 60
    python -m benchmarks.search.record_table smollm2-glaive data=glaive_toolcall_en_demo.json --minutes 60
    python -m benchmarks.search.record_table --summary FILE [--json]

A space is a command line of `autotune search`; `key=value` adds to it, or takes the place of its words about the
same key, and `null` leaves that key to the search. First come the references that a search
starts with (TRL's defaults, and settings by hand), then every candidate once, in random order, then in further rounds
the leaders, each round in another order, until the standard error of their rates is what the space asks. Each round
has a seed of its own, so that it draws other steps of the epoch: the same ones would err alike every time. The machine
should have nothing else to do; what it drifts all the same is corrected by the reference product that each trial times
before and after. Each row is on the disk before the next trial begins: stopped or killed, the same command goes on.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autotune.cli import usage
from autotune.cli.requests import build_home, build_search
from autotune.cli.settings import SearchSettings, store_configs
from autotune.core.candidate import Candidate, short_name
from autotune.core.hardware import Device, Hardware
from autotune.core.memory.estimate import room_of
from autotune.core.outcome import Measured, Outcome, outcome_to_dict
from autotune.core.space.enumerate import enumerate_space
from autotune.core.space.references import baseline, by_hand
from autotune.core.trials.budget import Budget
from autotune.errors import AutotuneError, UsageError
from autotune.machine.installed import installed
from autotune.machine.probe import probe
from autotune.models.catalogue import CONF
from autotune.search.request import SearchRequest, workload_of
from autotune.train.task import Measure, Task
from autotune.train.workers import Workers
from benchmarks.rows import append, now, read, refuse
from benchmarks.search.table import References, Row, Table, load, next_trial, summarize

RESULTS = Path(__file__).parents[1] / "results"
OF_THE_BEGINNING = ("begun", "probed")  # keys of a header that may be others when a table goes on
FIGURES = 6  # significant digits of a measured number; its noise is in the second


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A space to measure. words: of a search. why: of what it fixes. standard_error: of the leaders' rates."""

    words: tuple[str, ...]
    why: str
    standard_error: float


SPACES: Mapping[str, Preset] = {
    "tiny-demo": Preset(
        words=("model=tiny", "data=demo", "candidate.attention=sdpa"),
        why="the attention is the one that was asked for; with eager there are 714 candidates, hours of trials",
        standard_error=0.01,
    ),
    "smollm2-gsm8k": Preset(
        words=("model=smollm2", "recipe.effective_batch_size=4", "candidate.optimizer=adamw_torch_fused"),
        why="the optimizer is the one that was asked for; four samples a step keep a trial within a minute or two",
        standard_error=0.02,
    ),
    "smollm2-glaive": Preset(
        words=(
            "model=smollm2",
            "recipe.method=lora",
            "recipe.effective_batch_size=4",
            "candidate.max_length=2048",
            "candidate.attention=sdpa",
            "candidate.optimizer=adamw_torch_fused",
            "candidate.weights_dtype=bfloat16",
        ),
        why="one row of 300 is longer than 2048 tokens; of adapters, which are few, any optimizer takes no time; the "
        "base is frozen, and in the type that it was published in",
        standard_error=0.02,
    ),
}


def main() -> None:
    """Measure what is missing of a table, or say what is in it."""
    arguments = _arguments()
    try:
        if arguments.summary:
            summary = summarize(load(arguments.summary))
            print(json.dumps(summary) if arguments.json else "\n".join(f"{k}: {v}" for k, v in summary.items()))
        else:
            _record(arguments)
    except AutotuneError as error:
        refuse(error)
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on")


def record(
    file: Path,
    header: Mapping[str, Any],
    *,
    candidates: Sequence[Candidate],
    references: References,
    attempt: Callable[[Candidate, int, Table], Outcome],
    may_go_on: Callable[[], bool] = lambda: True,
    say: Callable[[str], None] = lambda line: None,
) -> bool:
    """Append to `file` what is missing, and say whether the table is whole.

    header: its `seed` orders the trials, its `standard_error` ends them, `probed` is what a search knows beforehand.
    references: of each role the fallbacks, as a search tries them. attempt: tries a candidate in a round, given the
    table so far.
    Raises UsageError when the file is the table of something else.
    """
    if not read(file):  # not begun, or torn off in its header
        append(file, dict(header))
    table = load(file)
    if changed := [key for key in header if key not in OF_THE_BEGINNING and table.header.get(key) != header[key]]:
        raise UsageError(*(f"{file}: is a table of another {key}; name another --out" for key in changed))
    while (trial := next_trial(table, candidates, references)) is not None:
        if not may_go_on():
            return False
        number, role, candidate = trial
        outcome = attempt(candidate, number, table)
        row = Row(
            order=len(table.rows), round=number, role=role, candidate=candidate, outcome=outcome, measured_at=now()
        )
        append(file, _plain(row))
        say(f"{row.order}: round {number} {_brief(outcome)} {short_name(candidate)}")
        table = load(file)
    return True


def _record(arguments: argparse.Namespace) -> None:
    started, preset = time.monotonic(), SPACES[arguments.space]
    words = _joined(preset.words, arguments.overrides)
    request = request_of(words)
    workload, hardware = workload_of(request, progress=_say), hardware_of(words)
    device: Device = "cuda" if hardware.kind == "cuda" else "cpu"
    limit = room_of(hardware).limit_bytes if device == "cpu" else None
    workers = Workers(device=device, device_uuid=hardware.uuid, memory_limit_bytes=limit)
    with workers, tempfile.TemporaryDirectory() as folder:
        here: dict[str, Any] = {"workload": workload, "hardware": hardware, "installed": installed()}
        space = enumerate_space(**here, fidelity=request.fidelity, fixed=request.fixed)
        budget = Budget(seconds=None if request.minutes is None else 60 * request.minutes, trials=request.trials)

        def attempt(candidate: Candidate, number: int, table: Table) -> Outcome:
            baseline_s = max((r.outcome.wall_s for r in table.rows if r.role == "baseline"), default=budget.share_s)
            own = Path(folder, str(len(table.rows)))
            own.mkdir()
            task = Task(
                candidate=candidate,
                recipe=request.recipe,
                model_path=workload.model.path,
                tokenized_path=workload.data.tokenized_path,
                seed=request.seed + number,
                device=device,
                output_dir=str(own),
                log_path=str(own / "log.txt"),
                goal=Measure(budget_s=budget.share_s),
            )
            return workers.perform(task, limit_s=budget.trial_limit_s(0, baseline_s=baseline_s, reserve_s=0))

        header = {
            "kind": "table",
            "name": arguments.space,
            "why": arguments.why or preset.why,
            "model": workload.model.name,
            "data": workload.data.name,
            "data_fingerprint": workload.data.fingerprint,
            "recipe": asdict(request.recipe),
            "fidelity": request.fidelity.name,
            "fixed": dict(request.fixed),
            "candidates": len(space.candidates),
            "trial_budget_s": budget.share_s,
            "standard_error": preset.standard_error,
            "seed": request.seed,
            "hardware": {"name": hardware.name, "cores": hardware.cores, "memory_bytes": hardware.memory_bytes},
            "versions": dict(here["installed"].versions),
            "begun": now(),
            "probed": hardware.to_dict(),
        }
        whole = record(
            arguments.out or RESULTS / f"table_{arguments.space}.jsonl",
            json.loads(json.dumps(header)),
            candidates=space.candidates,
            references=(
                ("baseline", baseline(**here)),
                ("by_hand", by_hand(**here)),
            ),
            attempt=attempt,
            may_go_on=lambda: arguments.minutes is None or time.monotonic() - started < 60 * arguments.minutes,
            say=_say,
        )
    _say("the table is whole" if whole else "the time is up; the same command goes on")


def request_of(words: Sequence[str]) -> SearchRequest:
    """The request that `autotune search` would make of these words."""
    return build_search(_settings(words), new=RESULTS)


def hardware_of(words: Sequence[str]) -> Hardware:
    """The machine that `autotune search` would probe with these words."""
    settings = _settings(words)
    use_gpu = settings.hardware.device != "cpu"
    return probe(home=build_home(settings), refresh=settings.refresh, use_gpu=use_gpu, progress=_say)


def _settings(words: Sequence[str]) -> SearchSettings:
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    store_configs(run_file={})
    overrides = usage.check("search", words)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings: Any = OmegaConf.to_object(compose("search", overrides=overrides))
    assert isinstance(settings, SearchSettings)
    return settings


def _joined(words: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """The words of a space with others in the place of those about the same key."""
    return list({word.partition("=")[0]: word for word in (*words, *overrides)}.values())


def _plain(row: Row) -> dict[str, Any]:
    values = {**asdict(row), "candidate": row.candidate.to_dict(), "outcome": outcome_to_dict(row.outcome)}
    plain: dict[str, Any] = json.loads(
        json.dumps(values), parse_float=lambda digits: float(f"{float(digits):.{FIGURES}g}")
    )
    return plain


def _brief(outcome: Outcome) -> str:
    rate = f" {outcome.useful_tokens_per_s:.1f} tokens/s" if isinstance(outcome, Measured) else ""
    return f"{outcome.kind}{rate} in {outcome.wall_s:.1f} s"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("space", nargs="?", choices=SPACES)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="further words of the search")
    parser.add_argument("--minutes", type=float, help="after which no trial is begun; without it until all is measured")
    parser.add_argument("--out", type=Path, help="the table; without it one of that name in results/")
    parser.add_argument("--why", help="of what further words fix or leave open; for the table's header")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="say what is in a table")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_intermixed_args()
    if (arguments.space is None) == (arguments.summary is None):
        parser.error("expected a space to measure, or --summary FILE")
    return arguments


if __name__ == "__main__":
    main()
