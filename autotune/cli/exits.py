"""How a command line ends: its exit code, and what is said about an error."""

import sys
import traceback

from autotune.cli import streams
from autotune.cli.commands import say
from autotune.errors import AutotuneError, UsageError, first_line

INTERRUPTED = 130  # 128 + SIGINT, as shells count
UNREAD = 141  # 128 + SIGPIPE: the reader of stdout or stderr has gone away, as `head` does


class JobFailed(Exception):
    """One job of a multirun failed and has said why. The other jobs go on. args: its exit code."""


def report_error(error: Exception, *, debug: bool) -> int:
    """Print on stderr what went wrong, and return the exit code."""
    if isinstance(error, BrokenPipeError) and streams.reader_is_gone():
        streams.discard(1, 2)
        return UNREAD
    if debug:
        traceback.print_exception(error)
        for line in error.details if isinstance(error, AutotuneError) else ():
            say(line)
    library = type(error).__module__.partition(".")[0]
    if isinstance(error, AutotuneError):
        problems, code = error.problems, error.exit_code
    elif library in ("hydra", "omegaconf"):  # a mistake that only Hydra found
        problems, code = [" ".join(f"{error} {error.__cause__ or ''}".split())], UsageError.exit_code
    elif isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
        problems, code = [f"{error.filename}: {error.strerror} (debug=true shows where)"], AutotuneError.exit_code
    else:
        said = f"{type(error).__name__}: {first_line(error)}" if str(error).strip() else type(error).__name__
        problems, code = [f"{said} (debug=true shows where)"], AutotuneError.exit_code
    if len(problems) == 1:
        say(f"autotune: {problems[0]}")
    else:
        say(f"autotune: {len(problems)} problems")
        for problem in problems:
            say(f"  {problem}")
    return code


def print_result(text: str) -> None:
    """Print on stdout what was asked for. Raises AutotuneError where it cannot be written, as on a full disk."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        streams.discard(1)
        raise AutotuneError(f"stdout: the answer cannot be written ({error.strerror})") from error
