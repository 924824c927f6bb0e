"""The run directory of a search: every trial that was ever started, on disk before and after it ran.

The folders `trials/0000`, `trials/0001` and so on are the record. In each of them, `trial.json` and `candidate.json`
are written before the trial starts, and `outcome.json` is written whole when it ends. A search that was killed at any
moment goes on from there. Beside them `spent_s.json` holds the seconds of all sittings, as of the last trial or the
end. The Optuna journal is made anew from the record at every start (proposer.py), so a torn line in it loses nothing.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autotune.core.candidate import Candidate
from autotune.core.outcome import Outcome, outcome_from_dict, outcome_to_dict
from autotune.core.trials.trial import Role, Trial
from autotune.errors import UsageError
from autotune.files import check_can_be_made, lock, make_directory, write_json

SPENT_FILE = "spent_s.json"


class Journal:
    """The record of one search. Opening it locks the directory for this process; `close` unlocks it.

    identity: what must not change between two sittings of a search (model, data, recipe, machine ...), plain values.
    Raises UsageError when the directory belongs to another search, holds a damaged trial, or is in use.
    """

    def __init__(self, out: Path, identity: Mapping[str, Any]) -> None:
        self.out = out
        make_directory(out)
        self._lock = lock(out)
        try:
            if not _is_of(out, identity):
                write_json(out / "search.json", identity)
            self.trials: list[Trial] = self._read()
        except BaseException:
            self._lock.close()
            raise

    def close(self) -> None:
        """Unlock the directory."""
        self._lock.close()

    def _read(self) -> list[Trial]:
        """Read all finished trials, and remove the folders of those that never finished."""
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
            except (UsageError, ValueError, TypeError) as error:
                raise UsageError(f"{folder}: cannot be read ({error}); remove it, or name another out") from error
        return trials

    @property
    def spent_s(self) -> float:
        """Seconds that all sittings took: as written down, but at least as long as the recorded trials took."""
        file = self.out / SPENT_FILE
        written = float(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else 0.0
        return max(written, sum(trial.outcome.wall_s for trial in self.trials))

    def spend(self, seconds: float) -> None:
        """Write down the seconds that all sittings have taken so far, this one among them."""
        write_json(self.out / SPENT_FILE, seconds)

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
        """Write down the outcome of the trial that `begin` numbered."""
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
        """Remove a trial that was interrupted: it says nothing about its candidate."""
        shutil.rmtree(self.folder(number), ignore_errors=True)


def check_directory(out: Path, identity: Mapping[str, Any]) -> None:
    """Judge whether a search can be kept in `out`, without writing there. Raises UsageError as `Journal` does."""
    _is_of(out, identity)
    check_can_be_made(out)


def _is_of(out: Path, identity: Mapping[str, Any]) -> bool:
    """Whether `out` holds this search already. Raises UsageError where it holds another one, or something else."""
    file = out / "search.json"
    if not file.exists():
        if (out / "trials").exists():
            raise UsageError(f"out={out}: holds trials but no search.json; name another out")
        return False
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(before, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: cannot be read ({error}); remove it, or name another out") from error
    now = json.loads(json.dumps(identity))
    changed = [
        f"out={out}: belongs to a search with another {key} "
        f"(there {_brief(before.get(key))}, now {_brief(now.get(key))}); name another out"
        for key in {**before, **now}
        if before.get(key) != now.get(key)
    ]
    if changed:
        raise UsageError(*changed)
    return True


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
