"""The command line: read the words, let Hydra compose them, do the work, and turn errors into exit codes.

The work and Hydra are imported only when they are needed, so help imports neither Hydra nor torch. Results go to
stdout, progress and problems to stderr. help.py lists the commands, usage.py judges the words, application.py calls
Hydra, and commands.py does the work.
"""

import os
import sys
from collections.abc import Sequence

from autotune import __version__
from autotune.cli import streams
from autotune.cli.application import call_hydra, complete, parse_flags
from autotune.cli.commands import say
from autotune.cli.exits import INTERRUPTED, UNREAD, JobFailed, print_result, report_error
from autotune.cli.help import COMMANDS, help_text
from autotune.cli.judge import hint_at, nearest
from autotune.cli.run_file import take_run_file
from autotune.cli.settings import store_configs
from autotune.cli.usage import check, twice_named
from autotune.environment import leave_empty_entry, take_away
from autotune.errors import AutotuneError, UsageError

COMPLETION = ("-sc", "--shell-completion")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line, by default this process's own, and return its exit code. argv: without the program."""
    words = list(sys.argv[1:] if argv is None else argv)
    streams.prepare()
    leave_empty_entry(sys.path, os.environ)
    try:
        code = _run(words)
        streams.flush()
        return code
    except OSError as error:  # only what could not even be said gets here
        streams.discard(1, 2)
        return UNREAD if isinstance(error, BrokenPipeError) else AutotuneError.exit_code


def _run(words: Sequence[str]) -> int:
    """Run a command line, say how it ended, and return the exit code."""
    try:
        _dispatch(words)
        return 0
    except KeyboardInterrupt:
        again = " (a search with the same out= continues)" if words[:1] == ["search"] else ""
        say(f"autotune: interrupted; what was measured and saved is kept{again}")
        return INTERRUPTED
    except SystemExit as end:  # a failed job ends like this, and so does Hydra's --hydra-help
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except JobFailed as failed:
        return int(failed.args[0])
    except Exception as error:
        return report_error(error, debug="debug=true" in words)


def _dispatch(words: Sequence[str]) -> None:
    first, *rest = words or ("--help",)
    if first in ("--help", "-h") or (first in COMMANDS and {"--help", "-h"} & set(rest)):
        print_result(help_text(first if first in COMMANDS else None))
    elif "--version" in words:
        print_result(f"autotune {__version__}\n")
    elif first in COMPLETION:
        complete(rest)
    elif first in COMMANDS:
        _compose_and_call(first, rest)
    else:
        hint = hint_at(nearest(first, COMMANDS))
        raise UsageError(f"{first}: no such command, expected one of {', '.join(COMMANDS)}{hint}")


def _compose_and_call(command: str, words: Sequence[str]) -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UsageError("the current directory is gone: change to one that exists") from None
    flags = parse_flags(words)
    overrides = list(flags.overrides)
    rest = [word for word in words if word not in overrides]  # Hydra's flags with their values
    multirun = flags.multirun or "hydra.mode=MULTIRUN" in overrides
    values, problems = take_run_file(overrides, multirun=multirun) if command == "run" else ({}, [])
    store_configs(run_file=values)
    if not (flags.hydra_help or flags.shell_completion):
        overrides = check(
            command,
            overrides,
            before=problems,
            config_name=flags.config_name,
            config_dir=flags.config_dir,
            multirun=multirun,
            to_be_used=not (flags.cfg or flags.info),
        )
    if not (flags.hydra_help or flags.shell_completion or flags.cfg or flags.info):
        for line in (*take_away(os.environ), *twice_named(flags.overrides)):
            say(line)
        _say_what_was_not_tested()
    # The flags go last: --info takes a value or none, and would take an override that follows it.
    call_hydra(command, [*overrides, *rest])


def _say_what_was_not_tested() -> None:
    from autotune.machine.installed import untested

    for line in untested():
        say(f"{line}; predictions and rules may be off")
