"""Experience: predicted and measured seconds of the trials of searches on a machine, kept for `autotune estimate`.

Leaves out how they correct a prediction (core/time/calibration.py).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autotune.cache import write_text
from autotune.core.hardware import Hardware
from autotune.core.time.law import FORMAT

MOST = 64  # the latest trials that are kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Taught:
    """What one trial teaches.

    name: of the model, the data and the candidate. A trial replaces an earlier one of the same name. spent: predicted
    seconds of a step, in the order of SPENT (core/time/law.py). step_s: the measured seconds of a step.
    """

    name: str
    spent: tuple[float, ...]
    step_s: float


def recall(home: Path, hardware: Hardware) -> tuple[Taught, ...]:
    """Read what was kept for a machine; empty if its probe has changed since."""
    try:
        kept = json.loads(_path(home, hardware).read_text(encoding="utf-8"))
        if kept["made_with"] != _made_with(hardware):
            return ()
        return tuple(Taught(**{**each, "spent": tuple(each["spent"])}) for each in kept["trials"])
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or not ours
        return ()


def keep(home: Path, hardware: Hardware, trials: Sequence[Taught]) -> None:
    """Add trials to what is kept. One of the same name replaces the older one."""
    if not trials:
        return
    known: dict[str, Taught] = {}
    for each in (*recall(home, hardware), *trials):
        known.pop(each.name, None)  # the latest one goes to the end
        known[each.name] = each
    latest = list(known.values())[-MOST:]
    document = {"made_with": _made_with(hardware), "trials": [asdict(each) for each in latest]}
    write_text(_path(home, hardware), json.dumps(document))


def _path(home: Path, hardware: Hardware) -> Path:
    return home / "hardware" / f"{hardware.uuid}-experience.json"


def _made_with(hardware: Hardware) -> dict[str, Any]:
    return {"probe": hardware.measured_at, "format": FORMAT}
