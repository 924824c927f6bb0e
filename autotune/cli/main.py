"""The command line: read the words, let Hydra compose them, do the work, print, and turn errors into exit codes.

Only this file prints on stdout: the results. Progress and problems go to stderr. The work and Hydra are imported
only when they are needed, so help imports neither Hydra nor torch. commands.py lists the commands, usage.py judges the
words, and requests.py makes the requests.
"""

import contextlib
import functools
import io
import json
import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune import __version__
from autotune.cli import usage
from autotune.cli.commands import COMMANDS, help_text
from autotune.cli.requests import build_estimate, build_home, build_run, build_search, directory_name
from autotune.cli.settings import (
    EstimateSettings,
    ProbeSettings,
    RunSettings,
    SearchSettings,
    TrainingSettings,
    find_problems,
    store_configs,
)
from autotune.errors import AutotuneError, UsageError
from autotune.models.catalogue import CONF

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from autotune.core.hardware import Hardware

INTERRUPTED = 130  # 128 + SIGINT, as shells count
COMPLETION = ("-sc", "--shell-completion")
_headed: list[int] = []  # the jobs of this sweep that have printed their row; the first prints the heading too


class _JobFailed(Exception):
    """One job of a multirun failed and has said why. The other jobs go on. args: its exit code."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line, by default this process's own, and return its exit code. argv: without the program."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(words)
    except KeyboardInterrupt:
        again = " (naming the same out= goes on from there)" if words[:1] == ["search"] else ""
        _say(f"autotune: interrupted; what was measured and saved is kept{again}")
        return INTERRUPTED
    except SystemExit as end:  # a failed job ends like this, and so does Hydra's --hydra-help
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except _JobFailed as failed:
        return int(failed.args[0])
    except Exception as error:
        return _report(error, debug="debug=true" in words)


def _dispatch(words: Sequence[str]) -> int:
    first, *rest = words or ("--help",)
    if first in ("--help", "-h") or (first in COMMANDS and {"--help", "-h"} & set(rest)):
        print(help_text(first if first in COMMANDS else None), end="")
    elif "--version" in words:
        print(f"autotune {__version__}")
    elif first in COMPLETION:
        _complete(rest)
    elif first in COMMANDS:
        _compose_and_call(first, rest)
    else:
        close = usage.nearest(first, COMMANDS)
        hint = f"; the nearest is {close}" if close else ""
        raise UsageError(f"{first}: no such command, expected one of {', '.join(COMMANDS)}{hint}")
    return 0


def _compose_and_call(command: str, words: Sequence[str]) -> None:
    flags = _parse(words)
    overrides = list(flags.overrides)
    rest = [word for word in words if word not in overrides]  # Hydra's flags with their values
    multirun = flags.multirun or "hydra.mode=MULTIRUN" in overrides
    values, problems = _take_file(overrides, multirun=multirun) if command == "run" else ({}, [])
    store_configs(run_file=values)
    if not (flags.hydra_help or flags.shell_completion):
        overrides = usage.check(
            command,
            overrides,
            before=problems,
            config_name=flags.config_name,
            config_dir=flags.config_dir,
            multirun=multirun,
            to_be_used=not (flags.cfg or flags.info),
        )
    if not (flags.hydra_help or flags.shell_completion or flags.cfg or flags.info):
        _say_what_was_not_tested()
    # The flags go last: --info takes a value or none, and would take an override that follows it.
    _call_hydra(command, [*overrides, *rest])


def _parse(words: Sequence[str]) -> Namespace:
    """Read Hydra's flags with Hydra's parser, anywhere among the words. Raises UsageError."""
    from hydra._internal.utils import get_args_parser

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            flags = get_args_parser().parse_intermixed_args(words)
    except SystemExit:
        raise UsageError(said.getvalue().strip().rpartition("error: ")[2]) from None
    modes = (flags.run, flags.multirun, flags.cfg, flags.info, flags.shell_completion)
    if sum(map(bool, modes)) > 1:
        raise UsageError("--run, --multirun, --cfg, --info and --shell-completion exclude each other")
    if flags.resolve and not flags.cfg:
        raise UsageError("--resolve goes with --cfg")
    return flags


def _take_file(overrides: list[str], *, multirun: bool) -> tuple[dict[str, Any], list[str]]:
    """Take FILE out of the words of a run and read it. Returns its values and its problems."""
    files = (word for word in overrides if Path(word).exists() or ("=" not in word and word[:1] not in "~+"))
    if (word := next(files, None)) is None:
        return {}, ["FILE is missing: autotune run FILE, the run.yaml of a search or its directory"]
    overrides.remove(word)
    file = Path(word).expanduser()
    values, problems = usage.load_run_file(file)
    directory = file if file.is_dir() else file.parent
    values.setdefault("out", f"{directory / 'run'}" + ("-${hydra:job.num}" if multirun else ""))
    return values, problems


def _call_hydra(command: str, argv: Sequence[str]) -> None:
    """Call hydra.main, which reads sys.argv. Its exceptions are raised here, not printed."""
    import hydra
    from hydra.core.utils import env_override

    app = hydra.main(config_path=str(CONF), config_name=command, version_base="1.3")(JOBS[command])
    _headed.clear()
    before, sys.argv = sys.argv, ["autotune", *argv]
    try:
        with env_override({"HYDRA_FULL_ERROR": "1"}):
            app()
    finally:
        sys.argv = before


def _complete(words: Sequence[str]) -> None:
    """Complete a command name, or let Hydra complete the words after it. COMP_LINE is the line so far."""
    line = os.environ.get("COMP_LINE", "")
    program, *typed = line.split() or [""]
    if any(word.startswith("query=") for word in words):
        if len(typed) < 2 and not (typed and line.endswith(" ")):
            print(" ".join(name for name in COMMANDS if name.startswith(typed[0] if typed else "")))
            return
        command, *behind = typed
        if command not in COMMANDS:
            return
        if command == "run":
            if len(behind) < 2 and not (behind and line.endswith(" ")):
                return  # this word is FILE: without an answer the shell offers its files
            behind = behind[1:]
        os.environ["COMP_LINE"] = " ".join((program, *behind)) + " " * (line.endswith(" ") or not behind)
    else:
        command = "probe"  # the installation is the same for all commands
    store_configs(run_file={})
    _call_hydra(command, ["-sc", *words])


def _job(work: Callable[[Any], str]) -> Callable[["DictConfig"], None]:
    """Make a Hydra job from a function that takes settings and returns the text for stdout."""

    @functools.wraps(work)
    def job(config: "DictConfig") -> None:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode
        from omegaconf import OmegaConf

        multirun = HydraConfig.get().mode is RunMode.MULTIRUN
        if multirun:
            _say(f"job {HydraConfig.get().job.num}: {' '.join(HydraConfig.get().overrides.task)}")
        try:
            settings: Any = OmegaConf.to_object(config)
            if problems := find_problems(settings):  # a sweep can combine values that are wrong together
                raise UsageError(*problems)
            with contextlib.redirect_stdout(sys.stderr):  # a library may print, and stdout is for the result
                shown = work(settings)
        except Exception as error:
            code = _report(error, debug=config.debug)
            # Hydra stops at a SystemExit. After any other exception it goes on with the next job.
            raise (_JobFailed if multirun else SystemExit)(code) from None
        print(shown, flush=True)

    return job


@_job
def probe(settings: ProbeSettings) -> str:
    """Measure this machine."""
    from autotune.machine.probe import probe, summary_lines

    hardware = _doubted(probe(home=build_home(settings), refresh=settings.refresh, progress=_say))
    return _shown(settings, hardware.to_dict(), summary_lines(hardware))


@_job
def estimate(settings: EstimateSettings) -> str:
    """Predict the memory and the time of one configuration."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from autotune.predict import report
    from autotune.predict.estimate import estimate

    hydra = HydraConfig.get()
    hardware, at_hand = _planned_hardware(settings)
    found = estimate(build_estimate(settings, hardware=hardware, at_hand=at_hand), progress=_say)
    if hydra.mode is RunMode.MULTIRUN:
        lines = report.table_lines(found, with_heading=not _headed)
        _headed.append(hydra.job.num)
    else:
        lines = report.summary_lines(found)
    return _shown(settings, report.document(found), lines)


@_job
def search(settings: SearchSettings) -> str:
    """Find the fastest configuration."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from rich.console import Console

    from autotune.core.decode import encode
    from autotune.search.display import SearchDisplay
    from autotune.search.request import workload_of
    from autotune.search.search import search
    from autotune.search.summary import summary_lines

    hydra = HydraConfig.get()
    name = f"{datetime.now():%Y%m%d-%H%M%S}-" + "-".join(
        directory_name(path or "") for path in (settings.model.path, settings.data.path)
    )
    if hydra.mode is RunMode.MULTIRUN:
        name += f"-{hydra.job.num}"  # launchers may start several jobs in one second
    _refuse_catalogue_gpu(settings)
    request = build_search(settings, new=Path("runs") / name)
    workload = workload_of(request, progress=_say)  # what the files say is judged before a probe, which takes a minute
    result = search(request, workload, _hardware(settings), display=SearchDisplay(Console(stderr=True)))
    return _shown(settings, encode(result), summary_lines(result))


@_job
def run(settings: RunSettings) -> str:
    """Train with a run file."""
    from hydra.core.hydra_config import HydraConfig
    from rich.console import Console

    from autotune.train.display import RunDisplay
    from autotune.train.run import run, summary_lines, workload_of

    overrides = HydraConfig.get().overrides.task
    _refuse_catalogue_gpu(settings)
    request = build_run(settings, overrides=overrides)
    workload = workload_of(request, progress=_say)
    result = run(request, workload, _hardware(settings), display=RunDisplay(Console(stderr=True)))
    return _shown(settings, result, summary_lines(result))


JOBS = {"probe": probe, "estimate": estimate, "search": search, "run": run}


def _planned_hardware(settings: EstimateSettings) -> tuple["Hardware", bool]:
    """The machine that is asked about, and whether it is the one at hand."""
    from autotune.core.gpu_specs import read_gpu_spec

    if settings.hardware.gpu:
        return read_gpu_spec(settings.hardware.gpu).hardware(cores=os.cpu_count() or 1), False
    from autotune.machine.probe import load_hardware, probe

    if settings.hardware.file is not None:
        return load_hardware(Path(settings.hardware.file).expanduser()), False
    use_gpu = settings.hardware.device != "cpu"
    return probe(home=build_home(settings), refresh=settings.refresh, use_gpu=use_gpu, progress=_say), True


def _refuse_catalogue_gpu(settings: TrainingSettings) -> None:
    if settings.hardware.gpu:
        raise UsageError(
            f"hardware={settings.hardware.gpu.get('name')}: is a GPU of the catalogue, for `autotune estimate`; search "
            "and run train on the machine at hand: expected hardware=auto, hardware=cpu or its own probe"
        )


def _hardware(settings: TrainingSettings) -> "Hardware":
    """Probe the machine that trains, or read its probe from a file."""
    from autotune.machine.probe import load_own_probe, probe

    if settings.hardware.file is not None:
        return load_own_probe(Path(settings.hardware.file).expanduser(), progress=_say)
    use_gpu = settings.hardware.device != "cpu"
    return _doubted(probe(home=build_home(settings), refresh=settings.refresh, use_gpu=use_gpu, progress=_say))


def _doubted(hardware: "Hardware") -> "Hardware":
    """Say why the rates of `hardware` cannot be trusted, if they cannot."""
    for doubt in hardware.doubts:
        _say(f"do not trust these rates: {doubt}")
    return hardware


def _shown(settings: ProbeSettings, result: Any, lines: Sequence[str]) -> str:
    return json.dumps(result) if settings.format == "json" else "\n".join(lines)


def _say_what_was_not_tested() -> None:
    from autotune.machine.installed import untested

    for line in untested():
        _say(f"{line}; predictions and rules may be off")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _report(error: Exception, *, debug: bool) -> int:
    """Print on stderr what went wrong, and return the exit code."""
    if debug:
        traceback.print_exception(error)
    library = type(error).__module__.partition(".")[0]
    if isinstance(error, AutotuneError):
        problems, code = error.problems, error.exit_code
    elif library in ("hydra", "omegaconf"):  # a mistake that only Hydra found
        problems, code = [" ".join(f"{error} {error.__cause__ or ''}".split())], UsageError.exit_code
    else:
        problems, code = [f"{type(error).__name__}: {error} (debug=true shows where)"], AutotuneError.exit_code
    if len(problems) == 1:
        _say(f"autotune: {problems[0]}")
    else:
        _say(f"autotune: {len(problems)} problems")
        for problem in problems:
            _say(f"  {problem}")
    return code
