"""The imports of the fork server, before it forks.

The objects that exist then are excluded from garbage collection. A worker's first full collection would otherwise visit
all of them (4.4 s under a profiler), and copy every page that they lie on.
"""

import gc

from autotune.train import measure

__all__ = ["measure"]

gc.freeze()
