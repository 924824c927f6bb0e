"""The pictures of docs/memory.md: SVG files drawn from traced profiles, with nothing but the standard library.

    python -m benchmarks.memory.pictures --home DIR --out docs/memory

The steps are of Qwen2.5-0.5B on an A100, 80 GB; `--model FILE` draws another `config.json` instead. A picture reads in
light and in dark themes: words and lines take their colour from the reader's, areas have colours that stand on both.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from autotune.core.batches.batches import Batch
from autotune.core.candidate import Candidate
from autotune.core.memory.law import memory_law, peak
from autotune.core.recipe import Recipe
from autotune.core.step.deepening import deepen
from autotune.core.step.profile import ON_THE_HOST, Profile, monomials
from autotune.core.units import GIB
from autotune.models.catalogue import CONF
from autotune.trace.profiles import Loss, load_profile, request_of
from autotune.trace.shallow import sliding_window

MODEL = CONF / "model" / "qwen2_5_0_5b.yaml"
A100 = (8, 0)
ROWS, LENGTH = 8, 1024
MICRO_BATCHES, LENGTHS = (1, 2, 4, 8, 16), (4, 32, 128, 256, 512, 1024)
OWNERS: Mapping[str, tuple[str, ...]] = {  # what is drawn as one, from the bottom up
    "weights, adapters": ("weights", "adapters", "weight copies"),
    "optimizer states": ("optimizer states",),
    "gradients": ("gradients",),
    "activations": ("activations",),
    "logits and loss": ("logits and loss",),
    "workspace": ("workspace", "batch", "other"),
}
COLOURS = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#aa3377")  # Paul Tol's bright scheme
PHASES = {"forward": "forward", "loss": "", "backward": "backward", "clip": "", "optimizer": "optimizer"}
LEFT, TOP, WIDTH, HEIGHT, GAP = 44, 46, 220, 190, 20  # pixels of a panel and around it
POINTS = 110  # over a panel; each is the worst of the operators it stands for
STYLE = "text{font:11px sans-serif;fill:#333}line{stroke:#8888}@media(prefers-color-scheme:dark){text{fill:#ccc}}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One diagram. values: GiB by group of owners, shape (len(OWNERS), columns). ticks: place in columns, word."""

    title: str
    values: np.ndarray[Any, np.dtype[np.float64]]
    ticks: Sequence[tuple[float, str]]
    bars: bool = False


def main() -> None:
    """Trace what is not in the cache yet, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True, help="where profiles are kept")
    parser.add_argument("--out", type=Path, required=True, help="the directory of the pictures")
    parser.add_argument("--model", type=Path, default=MODEL, help="a config.json, or an option of conf/model")
    arguments = parser.parse_args()
    read = json.loads if arguments.model.suffix == ".json" else yaml.safe_load  # YAML takes 1e-06 for a word
    values = read(arguments.model.read_text(encoding="utf-8"))
    config = json.loads(json.dumps(values.get("config", values)))
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, panels in pictures(config, arguments.home):
        path = arguments.out / f"{name}.svg"
        new = path.with_suffix(".new")
        new.write_text(svg(panels), encoding="utf-8")
        os.replace(new, path)
        print(path)


def pictures(config: Mapping[str, Any], home: Path) -> Iterator[tuple[str, list[Panel]]]:
    """Every picture's name and panels."""
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
    asker = _Asker(config=config, home=home)
    yield "step", [asker.over_a_step(title, way) for title, way in ways.items()]
    yield "micro_batch", [asker.over_rows(title, way) for title, way in ways.items()]
    known = replace(full, optimizer="adamw_torch")
    yield (
        "length",
        [
            asker.over_lengths("full logits", known, "full_logits"),
            asker.over_lengths("fused head", known, "fused"),
            asker.over_lengths("fused head, checkpointed", replace(known, checkpointing="full"), "fused"),
        ],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asker:
    """Where figures come from."""

    config: Mapping[str, Any]
    home: Path

    def profile(self, candidate: Candidate, loss: Loss, rows: int, length: int) -> Profile:
        """The profile of a micro-batch without padding, at full depth."""
        request = request_of(
            Batch(rows=rows, positions=length, labels=rows * (length - 1)),
            candidate,
            config=self.config,
            recipe=Recipe(method=candidate.method),
            window=sliding_window(self.config),
            masked=False,
            capability=A100,
            loss=loss,
        )
        shallow = load_profile(request, home=self.home, progress=lambda line: print(line, file=sys.stderr))
        return deepen(shallow, self.config["num_hidden_layers"])

    def over_a_step(self, title: str, candidate: Candidate) -> Panel:
        """Live bytes while the operators of a step run one after another."""
        profile = self.profile(candidate, "fused", ROWS, LENGTH)
        sizes = _sizes(profile, ROWS, LENGTH)
        group = [_group(block.owner) for block in profile.blocks]
        live = np.zeros(len(OWNERS))
        moments, phases = [], []
        for op in profile.ops:
            for place in op.allocates:
                live[group[place]] += sizes[place]
            if op.phase in PHASES:
                moments.append(live.copy())
                phases.append(op.phase)
            for place in op.frees:
                live[group[place]] -= sizes[place]
        values = np.array(moments).T / GIB
        parts = np.array_split(np.arange(values.shape[1]), min(POINTS, values.shape[1]))
        worst = [part[values[:, part].sum(axis=0).argmax()] for part in parts]
        ticks, start = [], 0.0
        for phase, run in groupby(phases[column] for column in worst):
            count = len(list(run))
            ticks.append((start + count / 2, PHASES[phase]))
            start += count
        return Panel(title=title, values=values[:, worst], ticks=ticks)

    def over_rows(self, title: str, candidate: Candidate) -> Panel:
        """The peak's items for several micro-batches."""
        shapes = [(rows, LENGTH) for rows in MICRO_BATCHES]
        return self._bars(title, candidate, "fused", shapes, MICRO_BATCHES)

    def over_lengths(self, title: str, candidate: Candidate, loss: Loss) -> Panel:
        """The peak's items for several lengths."""
        shapes = [(ROWS, length) for length in LENGTHS]
        return self._bars(title, candidate, loss, shapes, LENGTHS)

    def _bars(
        self,
        title: str,
        candidate: Candidate,
        loss: Loss,
        shapes: Sequence[tuple[int, int]],
        ticks: Sequence[int],
    ) -> Panel:
        values = np.zeros((len(OWNERS), len(shapes)))
        for column, (rows, length) in enumerate(shapes):
            profile = self.profile(candidate, loss, rows, length)
            law = memory_law(profile, layers=profile.layers, accumulation=1)
            for owner, count in peak(law, monomials(rows, length, rows * (length - 1))).items.items():
                values[_group(owner), column] += count / GIB
        return Panel(
            title=title,
            values=values,
            ticks=[(column + 0.5, str(tick)) for column, tick in enumerate(ticks)],
            bars=True,
        )


def _sizes(profile: Profile, rows: int, length: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    sizes = np.array([block.size for block in profile.blocks], dtype=np.float64)
    sizes[[block.owner in ON_THE_HOST for block in profile.blocks]] = 0
    return sizes @ np.array(monomials(rows, length, rows * (length - 1)), dtype=np.float64)


def _group(owner: str) -> int:
    return next((place for place, owners in enumerate(OWNERS.values()) if owner in owners), len(OWNERS) - 1)


def svg(panels: Sequence[Panel]) -> str:
    """The panels side by side, on one scale, below their legend."""
    most = max(float(panel.values.sum(axis=0).max()) for panel in panels)
    unit = next(step for step in (0.001, 0.01, 0.1, 0.5, 1, 2, 5, 10, 20) if most / step <= 8)
    width = LEFT + len(panels) * (WIDTH + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {TOP + HEIGHT + 24}"><style>{STYLE}</style>'
    ]
    for place, (name, colour) in enumerate(zip(OWNERS, COLOURS, strict=True)):
        left = LEFT + place * 118
        parts.append(f'<rect x="{left}" y="6" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{left + 14}" y="15">{name}</text>')
    for step in range(int(most / unit) + 1):
        y = TOP + HEIGHT * (1 - step * unit / most)
        parts.append(f'<line x1="{LEFT}" x2="{width - GAP}" y1="{y:.1f}" y2="{y:.1f}"/>')
        word = f"{step * unit:g}" + " GiB" * (step == int(most / unit))
        parts.append(f'<text x="{LEFT - 4}" y="{y + 4:.1f}" text-anchor="end">{word}</text>')
    for place, panel in enumerate(panels):
        parts += _drawn(panel, LEFT + place * (WIDTH + GAP), most)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _drawn(panel: Panel, left: float, most: float) -> Iterator[str]:
    columns = panel.values.shape[1]
    tops = np.vstack([np.zeros(columns), np.cumsum(panel.values, axis=0)])
    heights = TOP + HEIGHT * (1 - tops / most)
    wide = WIDTH / columns
    for lower, upper, colour in zip(heights[:-1], heights[1:], COLOURS, strict=True):
        if panel.bars:
            for column in range(columns):
                if lower[column] - upper[column] >= 0.1:
                    yield (
                        f'<rect x="{left + (column + 0.15) * wide:.1f}" y="{upper[column]:.1f}" '
                        f'width="{0.7 * wide:.1f}" height="{lower[column] - upper[column]:.1f}" fill="{colour}"/>'
                    )
        elif (lower - upper).max() >= 0.1:
            there = [f"{left + (column + 0.5) * wide:.1f},{upper[column]:.1f}" for column in range(columns)]
            back = [f"{left + (column + 0.5) * wide:.1f},{lower[column]:.1f}" for column in reversed(range(columns))]
            yield f'<polygon points="{" ".join(there + back)}" fill="{colour}"/>'
    yield f'<text x="{left + WIDTH / 2}" y="{TOP - 10}" text-anchor="middle">{panel.title}</text>'
    for place, word in panel.ticks:
        if word:
            x = left + place * wide
            yield f'<text x="{x:.1f}" y="{TOP + HEIGHT + 16}" text-anchor="middle">{word}</text>'


if __name__ == "__main__":
    main()
