"""Pictures for docs/: panels side by side on one scale, as small SVG files that read in light and in dark themes."""

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

GREY = "#777777"  # of words and axes: stands out on white and on black
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # words stay words
    "svg.hashsalt": "autotune",  # the same picture is the same file
    "font.size": 8,
    "font.sans-serif": ["DejaVu Sans"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.alpha": 0.4,
    "xtick.major.size": 0,
    "legend.frameon": False,
    "savefig.transparent": True,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), GREY),
}


@contextmanager
def picture(path: Path, panels: int, *, legend: Mapping[str, str], columns: int) -> Iterator[Any]:
    """Yield the axes of `panels` panels to draw on; write the SVG when the context ends.

    legend: colours by name, for all panels. columns: of the legend.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(0.6 + 2.4 * panels, 2.9), layout="constrained")
        yield figure.subplots(1, panels, sharey=True, squeeze=False)[0]
        patches = [Patch(color=colour, label=name) for name, colour in legend.items()]
        figure.legend(handles=patches, loc="outside upper center", ncols=columns)
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    text = re.sub(r"(?<=\.\d)\d+|(?<=\n) +", "", written.getvalue())  # a tenth of a point is enough
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
