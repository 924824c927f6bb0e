"""The introduction of a search: what a person should know about the machine, the data and the space before it begins.

Leaves out the trials (display.py) and the end (summary.py).
"""

from collections.abc import Iterator

from autotune.core.batches.trained import cut_in_words, trained_of
from autotune.core.candidate import Candidate
from autotune.core.hardware import Hardware
from autotune.core.space.enumerate import Space, explain
from autotune.core.units import count_of
from autotune.core.workload import Workload


def introduction(workload: Workload, hardware: Hardware, space: Space, *, explains: bool) -> Iterator[str]:
    """Yield the lines. explains: whether they say why combinations were removed from the space."""
    if hardware.is_slow_in_bf16:
        yield f"{hardware.name} is slow in bf16: TRL's defaults are measured without it"
    yield from _about_data(workload, space.candidates[0])
    counts = f"{count_of(space.legal, 'legal candidate')} of {count_of(space.enumerated, 'combination')}"
    if explains:
        yield counts
        yield from explain(space)
    else:
        yield f"{counts}; explain=true lists why the others are not legal"


def _about_data(workload: Workload, simplest: Candidate) -> Iterator[str]:
    """Say what is cut off, and what is known of a sample. simplest: of the space, with the shortest length in it."""
    data, limit = workload.data, workload.model.limit
    if (words := cut_in_words(trained_of(simplest, data.lengths), simplest)) is not None:
        takes = "" if limit is None else f", and the model takes {limit}"
        yield f"{words}; the longest row has {count_of(data.lengths.longest, 'token')}{takes}"
    if data.coverage_error:
        yield (
            f"{data.lengths.rows:,} of {count_of(data.rows_in_file, 'row')} were tokenized; the mean length of all is "
            f"known to within {data.coverage_error:.1%}"
        )
