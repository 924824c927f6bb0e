"""The introduction of a search: what a person should know about the machine, the data and the space before it begins.

Leaves out the trials (display.py) and the end (summary.py).
"""

from collections.abc import Iterator

from autotune.core.hardware import Hardware
from autotune.core.space.enumerate import Space, explain
from autotune.core.workload import Workload


def introduction(workload: Workload, hardware: Hardware, space: Space, *, explains: bool) -> Iterator[str]:
    """Yield the lines. explains: whether they say why combinations were removed from the space."""
    if hardware.is_slow_in_bf16:
        yield f"{hardware.name} is slow in bf16: TRL's defaults are measured without it"
    yield from _about_data(workload)
    counts = f"{space.legal:,} candidates of {space.enumerated:,} combinations are legal"
    if explains:
        yield counts
        yield from explain(space)
    else:
        yield f"{counts}; explain=true lists why the others are not"


def _about_data(workload: Workload) -> Iterator[str]:
    lengths, limit = workload.data.lengths, workload.model.limit
    if limit is not None and lengths.longest > limit:
        yield (
            f"the longest row has {lengths.longest} tokens, the model takes {limit}: {1 - lengths.coverage(limit):.2%} "
            "of all tokens are beyond that and are cut off"
        )
    if workload.data.coverage_error:
        yield (
            f"{lengths.rows:,} of {workload.data.rows_in_file:,} rows were tokenized; the mean length of all is known "
            f"to within {workload.data.coverage_error:.1%}"
        )
