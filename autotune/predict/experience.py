"""Experience: what the trials of searches on a machine say of its predicted seconds, kept for `autotune estimate`.

Leaves out what follows from it (core/time/calibration.py).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autotune.cache import write_text
from autotune.core.hardware import Hardware
from autotune.core.time.law import FORMAT

MOST = 64  # trials that are kept, the latest


@dataclass(frozen=True, slots=True, kw_only=True)
class Taught:
    """A trial. name: of what was trained, once each. spent: predicted seconds of a step by what they are spent on, in
    the order of timing.SPENT. step_s: measured ones."""

    name: str
    spent: tuple[float, ...]
    step_s: float


def recall(home: Path, hardware: Hardware) -> tuple[Taught, ...]:
    """What is known of a machine, as long as it was predicted from the same probe; nothing where it was not."""
    try:
        kept = json.loads(_path(home, hardware).read_text(encoding="utf-8"))
        if kept["made_with"] != _made_with(hardware):
            return ()
        return tuple(Taught(**{**each, "spent": tuple(each["spent"])}) for each in kept["trials"])
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or not ours
        return ()


def keep(home: Path, hardware: Hardware, trials: Sequence[Taught]) -> None:
    """Add trials to what is known; one of the same name takes the other's place."""
    if not trials:
        return
    known: dict[str, Taught] = {}
    for each in (*recall(home, hardware), *trials):
        known.pop(each.name, None)  # the latest stand last
        known[each.name] = each
    latest = list(known.values())[-MOST:]
    document = {"made_with": _made_with(hardware), "trials": [asdict(each) for each in latest]}
    write_text(_path(home, hardware), json.dumps(document))


def _path(home: Path, hardware: Hardware) -> Path:
    return home / "hardware" / f"{hardware.uuid}-experience.json"


def _made_with(hardware: Hardware) -> dict[str, Any]:
    return {"probe": hardware.measured_at, "format": FORMAT}
