"""The run directory of a search: every trial that was ever started, on disk before and after it ran.

The folders `trials/0000` and on are the record: `trial.json` and `candidate.json` stand before a trial starts,
`outcome.json` is written whole when it ends. A search that was killed at any moment goes on from them. Beside them
`spent_s.json` holds the seconds of all sittings, as of the last trial or the end. The Optuna journal is made anew from
the record at every start (proposals.py), so a torn line in it loses nothing.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from autotune.core.candidate import Candidate
from autotune.core.outcome import Measured, Outcome, outcome_from_dict, outcome_to_dict
from autotune.errors import UsageError

Role = Literal["baseline", "by_hand", "search", "repeat"]
SPENT = "spent_s.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A candidate and what became of it.

    number: place in the search, from 0. role: why it was tried; a `repeat` is one of the second, paired measurement.
    of: the number of the trial that a repeat repeats. round: which round of repeats, from 0.
    """

    number: int
    role: Role
    candidate: Candidate
    outcome: Outcome
    of: int | None = None
    round: int | None = None

    @property
    def rate(self) -> float | None:
        """Useful tokens per second, None unless it was measured."""
        return self.outcome.useful_tokens_per_s if isinstance(self.outcome, Measured) else None


class Journal:
    """The record of one search. Opening it takes the directory for this process alone; `close` gives it back.

    identity: what must not change between two sittings of a search (model, data, recipe, machine ...), plain values.
    Raises UsageError when the directory belongs to another search, or is in use.
    """

    def __init__(self, out: Path, identity: Mapping[str, Any]) -> None:
        self.out = out
        out.mkdir(parents=True, exist_ok=True)
        self._lock = lock(out)
        try:
            self._check_identity(identity)
        except BaseException:
            self._lock.close()
            raise
        self.trials: list[Trial] = self._read()

    def close(self) -> None:
        """Give the directory back."""
        self._lock.close()

    def _check_identity(self, identity: Mapping[str, Any]) -> None:
        file = self.out / "search.json"
        if not file.exists():
            if (self.out / "trials").exists():
                raise UsageError(f"out={self.out}: holds trials but no search.json; name another out")
            write_json(file, identity)
            return
        before = json.loads(file.read_text(encoding="utf-8"))
        now = json.loads(json.dumps(identity))
        changed = [
            f"out={self.out}: belongs to a search with another {key} "
            f"(there {_brief(before.get(key))}, now {_brief(now.get(key))}); name another out"
            for key in {**before, **now}
            if before.get(key) != now.get(key)
        ]
        if changed:
            raise UsageError(*changed)

    def _read(self) -> list[Trial]:
        """All finished trials; folders of trials that never finished are cleared away."""
        trials = []
        for folder in sorted((self.out / "trials").glob("[0-9]" * 4)):
            try:
                trials.append(
                    Trial(
                        **json.loads((folder / "trial.json").read_text(encoding="utf-8")),
                        candidate=Candidate(**json.loads((folder / "candidate.json").read_text(encoding="utf-8"))),
                        outcome=outcome_from_dict(json.loads((folder / "outcome.json").read_text(encoding="utf-8"))),
                    )
                )
            except FileNotFoundError:
                shutil.rmtree(folder)
            except (ValueError, TypeError, KeyError) as error:
                raise UsageError(f"{folder}: cannot be read ({error}); remove it, or name another out") from error
        return trials

    @property
    def spent_s(self) -> float:
        """Seconds that all sittings took, as far as they said; what the recorded trials took at least."""
        file = self.out / SPENT
        said = float(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else 0.0
        return max(said, sum(trial.outcome.wall_s for trial in self.trials))

    def spend(self, seconds: float) -> None:
        """Write down what all sittings, this one among them, have taken so far."""
        write_json(self.out / SPENT, seconds)

    def folder(self, number: int) -> Path:
        """The folder of a trial."""
        return self.out / "trials" / f"{number:04d}"

    def begin(self, candidate: Candidate, role: Role, *, of: int | None = None, round: int | None = None) -> int:
        """Write down that a candidate is about to be tried, and return the trial's number."""
        number = self.trials[-1].number + 1 if self.trials else 0
        folder = self.folder(number)
        folder.mkdir(parents=True)
        write_json(folder / "candidate.json", candidate.to_dict())
        write_json(folder / "trial.json", {"number": number, "role": role, "of": of, "round": round})
        return number

    def end(self, number: int, outcome: Outcome) -> Trial:
        """Write down what became of the trial that `begin` numbered."""
        folder = self.folder(number)
        write_json(folder / "outcome.json", outcome_to_dict(outcome))
        self.trials.append(
            Trial(
                **json.loads((folder / "trial.json").read_text(encoding="utf-8")),
                candidate=Candidate(**json.loads((folder / "candidate.json").read_text(encoding="utf-8"))),
                outcome=outcome,
            )
        )
        return self.trials[-1]

    def abandon(self, number: int) -> None:
        """Clear away a trial that was interrupted: it says nothing about its candidate."""
        shutil.rmtree(self.folder(number), ignore_errors=True)


def lock(out: Path) -> IO[str]:
    """Take a directory for this process until the file that this returns is closed.

    Raises UsageError when another process has it.
    """
    stream = (out / ".lock").open("w")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel gives it back, also after kill -9
    except BlockingIOError:
        stream.close()
        raise UsageError(f"out={out}: another process is writing there; wait for it or name another out") from None
    except OSError:  # a file system without locks cannot tell
        pass
    return stream


def write_json(file: Path, value: Any) -> None:
    """Write plain values as JSON, whole or not at all."""
    write_text(file, json.dumps(value, indent=2) + "\n")


def write_text(file: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
