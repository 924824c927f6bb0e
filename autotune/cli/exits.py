"""How a command line ends: its exit code, and what is said about an error."""

import traceback

from autotune.cli.commands import say
from autotune.errors import AutotuneError, UsageError

INTERRUPTED = 130  # 128 + SIGINT, as shells count


class JobFailed(Exception):
    """One job of a multirun failed and has said why. The other jobs go on. args: its exit code."""


def report_error(error: Exception, *, debug: bool) -> int:
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
        say(f"autotune: {problems[0]}")
    else:
        say(f"autotune: {len(problems)} problems")
        for problem in problems:
            say(f"  {problem}")
    return code
