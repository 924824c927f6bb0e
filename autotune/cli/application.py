"""The commands as Hydra applications: read Hydra's flags, compose the settings, run the jobs, complete words.

Only main.py and this file print on stdout. Leaves out judging the words (usage.py) and the work (commands.py).
"""

import contextlib
import io
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from autotune.cli.commands import JOBS, Job, say
from autotune.cli.exits import UNREAD, JobFailed, print_result, report_error
from autotune.cli.help import COMMANDS
from autotune.cli.settings import find_problems, store_configs
from autotune.errors import UsageError
from autotune.models.catalogue import CONF

if TYPE_CHECKING:
    from omegaconf import DictConfig


def parse_flags(words: Sequence[str]) -> Namespace:
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


def call_hydra(command: str, argv: Sequence[str]) -> None:
    """Call hydra.main, which reads sys.argv. Its exceptions are raised here, not printed."""
    import hydra
    from hydra.core.utils import env_override

    app = hydra.main(config_path=str(CONF), config_name=command, version_base="1.3")(_job(command))
    before, sys.argv = sys.argv, ["autotune", *argv]
    try:
        with env_override({"HYDRA_FULL_ERROR": "1"}):
            app()
    finally:
        sys.argv = before


def complete(words: Sequence[str]) -> None:
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
    call_hydra(command, ["-sc", *words])


def _job(command: str) -> Callable[["DictConfig"], None]:
    """Make the function that Hydra calls for each job of a command."""
    printed: list[int] = []  # how often a job has printed its result

    def job(config: "DictConfig") -> None:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode
        from omegaconf import OmegaConf

        hydra = HydraConfig.get()
        multirun = hydra.mode is RunMode.MULTIRUN
        about = Job(number=hydra.job.num if multirun else None, overrides=hydra.overrides.task, is_first=not printed)
        if multirun:
            say(f"job {about.number}: {' '.join(about.overrides)}")
        try:
            settings: Any = OmegaConf.to_object(config)
            if problems := find_problems(settings):  # a sweep can combine values that are wrong together
                raise UsageError(*problems)
            with contextlib.redirect_stdout(sys.stderr):  # a library may print, and stdout is for the result
                shown = JOBS[command](settings, about)
            print_result(f"{shown}\n")
        except Exception as error:
            code = report_error(error, debug=config.debug)
            # Hydra stops at a SystemExit. After any other exception it goes on with the next job.
            raise (JobFailed if multirun and code != UNREAD else SystemExit)(code) from None
        printed.append(1)

    return job
