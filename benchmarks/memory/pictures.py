"""The pictures of docs/memory.md, drawn from traced profiles: what fills a GPU's memory over one training step.

    python -m benchmarks.memory.pictures --home DIR --out docs/memory

The steps are of Qwen2.5-0.5B on an A100, 80 GB; `--model` draws another model, as `autotune estimate` knows it.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autotune.core.batches.batches import Batch
from autotune.core.candidate import Candidate
from autotune.core.memory.law import memory_law, peak
from autotune.core.recipe import Recipe
from autotune.core.step.deepening import deepen
from autotune.core.step.profile import ON_THE_HOST, Profile, monomials
from autotune.core.units import GIB
from autotune.models.find import resolve_architecture
from autotune.trace.profiles import Profiles
from autotune.trace.request import Loss, request_of
from benchmarks.command import Answer, command, say
from benchmarks.memory.exact import live_bytes
from benchmarks.pictures import picture

A100 = (8, 0)
ROWS, LENGTH = 8, 1024
MICRO_BATCHES, LENGTHS = (1, 2, 4, 8, 16), (4, 32, 128, 256, 512, 1024)
OWNERS: Mapping[str, tuple[str, ...]] = {  # drawn as one area, from the bottom up
    "weights, adapters": ("weights", "adapters", "weight copies"),
    "optimizer states": ("optimizer states",),
    "gradients": ("gradients",),
    "activations": ("activations",),
    "logits and loss": ("logits and loss",),
    "workspace": ("workspace", "batch", "other"),
}
BRIGHT = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#aa3377")  # Paul Tol's colours of that name
COLOURS = dict(zip(OWNERS, BRIGHT, strict=True))
PHASES = {"forward": "forward", "loss": "", "backward": "backward", "clip": "", "optimizer": "optimizer"}
Floats = NDArray[np.float64]
ProfileOf = Callable[[Candidate, Loss, int, int], Profile]  # of rows and positions of a micro-batch
INVISIBLE = 1 / 1000  # of the height of a panel
POINTS = 80  # of an area; each is the worst of the operators that it stands for


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One diagram. values: GiB by group of owners, shape (len(OWNERS), columns). ticks: word by place in columns."""

    title: str
    values: Floats
    ticks: Mapping[float, str]
    bars: bool


def options(parser: argparse.ArgumentParser) -> None:
    """Name the directories and the model."""
    parser.add_argument("--home", type=Path, required=True, help="where profiles are kept")
    parser.add_argument("--out", type=Path, required=True, help="the directory of the pictures")
    parser.add_argument("--model", default="Qwen/Qwen2.5-0.5B", help="a hub id, or a directory with a config.json")


def answer(arguments: argparse.Namespace) -> Answer:
    """Trace what is not in the cache yet, and draw."""
    config, facts = resolve_architecture(arguments.model, None, home=arguments.home, progress=say)

    def profile_of(candidate: Candidate, loss: Loss, rows: int, length: int) -> Profile:
        request = request_of(
            Batch(rows=rows, positions=length, labels=rows * (length - 1)),
            candidate,
            config=config,
            recipe=Recipe(method=candidate.method),
            window=facts.window,
            masked=False,
            capability=A100,
            loss=loss,
        )
        return deepen(Profiles(home=arguments.home, progress=say).load(request), facts.layers)

    files = {arguments.out / f"{name}.svg": panels for name, panels in pictures(profile_of)}
    for file, panels in files.items():
        draw(panels, file)
    return {"files": list(map(str, files))}


def pictures(profile_of: ProfileOf) -> Iterator[tuple[str, list[Panel]]]:
    """Yield every picture's name and panels. profile_of: traces a candidate at full depth, without padding."""
    full = Candidate(
        max_length=LENGTH,
        per_device_train_batch_size=ROWS,
        gradient_accumulation_steps=1,
        method="full",
        weights_dtype="bfloat16",
        mixed_precision="no",
    )
    ways = {
        "full": full,
        "full, checkpointed": replace(full, checkpointing="full"),
        "LoRA": replace(full, method="lora"),
        "LoRA, checkpointed": replace(full, method="lora", checkpointing="full"),
    }
    yield "step", [over_a_step(title, profile_of(way, "fused", ROWS, LENGTH)) for title, way in ways.items()]

    def peaks(title: str, way: Candidate, loss: Loss, shapes: Mapping[int, tuple[int, int]]) -> Panel:
        profiles = [(profile_of(way, loss, *shape), *shape) for shape in shapes.values()]
        values = np.array([peak_of(*each) for each in profiles]).T
        return Panel(title=title, values=values, ticks=dict(enumerate(map(str, shapes))), bars=True)

    rows = {rows: (rows, LENGTH) for rows in MICRO_BATCHES}
    yield "micro_batch", [peaks(title, way, "fused", rows) for title, way in ways.items()]
    lengths = {length: (ROWS, length) for length in LENGTHS}
    foreach = replace(full, optimizer="adamw_torch")
    checkpointed = replace(foreach, checkpointing="full")
    kinds: tuple[tuple[str, Candidate, Loss], ...] = (
        ("full logits", foreach, "full_logits"),
        ("fused head", foreach, "fused"),
        ("fused head, checkpointed", checkpointed, "fused"),
    )
    yield "length", [peaks(title, way, loss, lengths) for title, way, loss in kinds]


def over_a_step(title: str, profile: Profile) -> Panel:
    """Show the live bytes while the operators of a step run one after another."""
    moments, phases = [], []
    for op, live in live_bytes(profile, monomials(ROWS, LENGTH, ROWS * (LENGTH - 1)), 1):
        if op.phase in PHASES:
            moments.append(by_group(live))
            phases.append(op.phase)
    values = np.array(moments).T
    parts = np.array_split(np.arange(values.shape[1]), min(POINTS, values.shape[1]))
    worst = [part[values[:, part].sum(axis=0).argmax()] for part in parts]
    ticks, start = {}, 0
    for phase, run in groupby(phases[column] for column in worst):
        count = len(list(run))
        ticks[start + count / 2] = PHASES[phase]
        start += count
    return Panel(title=title, values=values[:, worst], ticks=ticks, bars=False)


def peak_of(profile: Profile, rows: int, length: int) -> Floats:
    """Return what the peak holds, in GiB by group of owners."""
    law = memory_law(profile, layers=profile.layers, accumulation=1)
    return by_group(peak(law, monomials(rows, length, rows * (length - 1))).items)


def by_group(items: Mapping[str, int]) -> Floats:
    """Sum up bytes by owner, as GiB by group of owners; leave out the host's. The last group takes the unknown."""
    values = np.zeros(len(OWNERS))
    for owner, held in items.items():
        if owner not in ON_THE_HOST:
            place = next((place for place, owners in enumerate(OWNERS.values()) if owner in owners), len(OWNERS) - 1)
            values[place] += held / GIB
    return values


def draw(panels: Sequence[Panel], path: Path) -> None:
    """Draw areas, or bars, of GiB on top of each other."""
    with picture(path, len(panels), legend=COLOURS, columns=len(COLOURS)) as axes:
        for axis, panel in zip(axes, panels, strict=True):
            columns, tops = np.arange(panel.values.shape[1]), np.cumsum(panel.values, axis=0)
            for values, top, colour in zip(panel.values, tops, COLOURS.values(), strict=True):
                if values.max() < INVISIBLE * tops.max():
                    continue
                if panel.bars:
                    axis.bar(columns, values, bottom=top - values, width=0.7, color=colour)
                else:
                    axis.fill_between(columns, top - values, top, color=colour, linewidth=0)
            axis.set_title(panel.title)
            axis.set_xticks(list(panel.ticks), list(panel.ticks.values()))
        axes[0].set_ylabel("GiB")
        axes[0].set_ylim(bottom=0)


main = command(__doc__, answer, options)

if __name__ == "__main__":
    sys.exit(main())
