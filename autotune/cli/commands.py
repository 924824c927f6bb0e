"""What each command does: its settings become a request, the work is done, and its result becomes text for stdout.

The work is imported when a job runs, so that help stays fast. Leaves out who calls the jobs (application.py).
"""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.cli.requests import build_estimate, build_home, build_run, build_search, directory_name
from autotune.cli.settings import (
    EstimateSettings,
    ProbeSettings,
    RunSettings,
    SearchSettings,
    TrainingSettings,
    WorkloadSettings,
)
from autotune.errors import UsageError

if TYPE_CHECKING:
    from autotune.core.hardware import Hardware


RUNS = Path("runs")  # where searches make new directories


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job of a command line. number: its place in a multirun, None without -m.

    overrides: the words of the command line, with this job's values. is_first: no job has printed its result yet.
    """

    number: int | None
    overrides: Sequence[str]
    is_first: bool


def say(line: str) -> None:
    """Print a line of progress, or of a problem, on stderr."""
    print(line, file=sys.stderr, flush=True)


def probe(settings: ProbeSettings, job: Job) -> str:
    """Measure this machine."""
    from autotune.machine.probe import probe, summary_lines

    hardware = _doubted(probe(home=build_home(settings), refresh=settings.refresh, progress=say))
    return _shown(settings, hardware.to_dict(), summary_lines(hardware))


def estimate(settings: EstimateSettings, job: Job) -> str:
    """Predict the memory and the time of one configuration."""
    from autotune.predict import report
    from autotune.predict.estimate import estimate, workload_of
    from autotune.trace.tracer import start_tracer

    request, given = build_estimate(settings), _given_hardware(settings)
    meanwhile = (lambda: None) if given is None else start_tracer  # beside a probe nothing else may run
    config, workload = workload_of(request, progress=say, meanwhile=meanwhile)
    hardware = given or _probed(settings)
    found = estimate(request, config, workload, hardware, at_hand=given is None, progress=say)
    if job.number is None:
        return _shown(settings, report.document(found), report.summary_lines(found))
    return _shown(settings, report.document(found), report.table_lines(found, with_heading=job.is_first))


def search(settings: SearchSettings, job: Job) -> str:
    """Find the fastest configuration."""
    from rich.console import Console

    from autotune.core.decode import encode
    from autotune.machine.host import check_semaphores
    from autotune.search.display import SearchDisplay
    from autotune.search.request import workload_of
    from autotune.search.search import check_search, search
    from autotune.search.summary import summary_lines

    _refuse_catalogue_gpu(settings)
    check_semaphores()
    request = build_search(settings, new=RUNS / _new_name(settings, job))
    # What the files say is judged before a probe, which takes a minute.
    workload = workload_of(request, progress=say)
    check_search(request, workload, _seen(settings))
    result = search(request, workload, _hardware(settings), display=SearchDisplay(Console(stderr=True)))
    return _shown(settings, encode(result), summary_lines(result))


def run(settings: RunSettings, job: Job) -> str:
    """Train with a run file."""
    from rich.console import Console

    from autotune.train.display import RunDisplay
    from autotune.train.run import check_run, run, summary_lines, workload_of

    _refuse_catalogue_gpu(settings)
    request = build_run(settings, overrides=job.overrides)
    workload = workload_of(request, progress=say)
    check_run(request, workload, _seen(settings))
    result = run(request, workload, _hardware(settings), display=RunDisplay(Console(stderr=True)))
    return _shown(settings, result, summary_lines(result))


JOBS: Mapping[str, Callable[[Any, Job], str]] = {"probe": probe, "estimate": estimate, "search": search, "run": run}


def _new_name(settings: SearchSettings, job: Job) -> str:
    """Name a new run directory by the time, the model and the data."""
    paths = (settings.model.path, settings.data.path)
    parts = [f"{datetime.now():%Y%m%d-%H%M%S}", *(directory_name(path or "") for path in paths)]
    if job.number is not None:
        parts.append(str(job.number))  # a launcher may start several jobs in one second
    name = "-".join(parts)
    # Two searches may start in the same second, and a clock may be set back.
    names = (name, *(f"{name}-{number}" for number in range(2, 100)))
    return next(free for free in names if not (RUNS / free).exists())


def _given_hardware(settings: EstimateSettings) -> "Hardware | None":
    """A GPU of the catalogue, or a probe in a file. None for the machine at hand, which a probe must look at."""
    if settings.hardware.gpu:
        from autotune.core.gpu_spec import read_gpu_spec

        return read_gpu_spec(settings.hardware.gpu).hardware(cores=os.cpu_count() or 1)
    if settings.hardware.file is not None:
        from autotune.machine.probe import load_hardware

        return _doubted(load_hardware(Path(settings.hardware.file).expanduser()))
    return None


def _refuse_catalogue_gpu(settings: TrainingSettings) -> None:
    if settings.hardware.gpu:
        raise UsageError(
            f"hardware={settings.hardware.gpu.get('name')}: is a GPU of the catalogue, for `autotune estimate`; search "
            "and run train on the machine at hand: expected hardware=auto, hardware=cpu or its own probe"
        )


def _seen(settings: TrainingSettings) -> "Hardware":
    """The machine that trains, as far as it can be known without measuring."""
    from autotune.machine.probe import load_own_probe, look

    if settings.hardware.file is not None:
        return load_own_probe(Path(settings.hardware.file).expanduser(), progress=lambda line: None)
    return look(use_gpu=settings.hardware.device != "cpu")


def _hardware(settings: TrainingSettings) -> "Hardware":
    """Probe the machine that trains, or read its probe from a file."""
    from autotune.machine.probe import load_own_probe

    if settings.hardware.file is not None:
        return _doubted(load_own_probe(Path(settings.hardware.file).expanduser(), progress=say))
    return _probed(settings)


def _probed(settings: WorkloadSettings) -> "Hardware":
    """Probe the machine at hand, or look up its probe."""
    from autotune.machine.probe import probe

    use_gpu = settings.hardware.device != "cpu"
    return _doubted(probe(home=build_home(settings), refresh=settings.refresh, use_gpu=use_gpu, progress=say))


def _doubted(hardware: "Hardware") -> "Hardware":
    """Say why the rates of `hardware` cannot be trusted, if they cannot."""
    for doubt in hardware.doubts:
        say(f"do not trust these rates: {doubt}")
    return hardware


def _shown(settings: ProbeSettings, result: Any, lines: Sequence[str]) -> str:
    return json.dumps(result) if settings.format == "json" else "\n".join(lines)
