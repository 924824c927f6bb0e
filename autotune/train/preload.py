"""What the fork server imports before it forks.

Everything that is there is frozen out of garbage collection: a worker's first full collection would otherwise walk
all of it (4.4 s under a profiler), and copy every page of it.
"""

import gc

from autotune.train import measure

__all__ = ["measure"]

gc.freeze()
