"""Calibration: what measured peaks of memory say about predicted ones.

A factor and an offset for each method, and no more: the offset is what lives beside the tensors that a trace sees
(libraries, their kernels' caches), the factor what the allocator rounds and splits. They are fitted to the peaks of
trials on this machine, so a prediction gets closer as a search goes on. Leaves out the prediction itself (memory.py).

Symbols: p predicted bytes, m measured bytes of a trial; m ~ factor p + offset.
"""

from collections.abc import Iterable
from dataclasses import dataclass

FACTORS = (0.8, 1.25)  # beyond them two peaks differ for other reasons than the allocator's
SPREAD = 1.2  # largest over smallest p from which on a factor can be told from an offset


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryCalibration:
    """How measured peaks of one method follow from predicted ones; as it is, nothing is known yet.

    peaks: of how many trials. worst_bytes: by how much a measured peak exceeded factor p + offset at most.
    """

    factor: float = 1.0
    offset_bytes: float = 0.0
    worst_bytes: float = 0.0
    peaks: int = 0

    def expected(self, predicted_bytes: float) -> float:
        """The peak to expect, in bytes."""
        return max(0.0, self.factor * predicted_bytes + self.offset_bytes)

    def at_most(self, predicted_bytes: float) -> float:
        """The expected peak and the largest excess seen so far, in bytes: what a limit is compared with."""
        return self.expected(predicted_bytes) + self.worst_bytes


def calibrate_memory(peaks: Iterable[tuple[float, float]]) -> MemoryCalibration:
    """Fit to (predicted, measured) bytes of the trials of one method, by least squares."""
    pairs = list(peaks)
    if not pairs:
        return MemoryCalibration()
    n = len(pairs)
    mean_p, mean_m = sum(p for p, _ in pairs) / n, sum(m for _, m in pairs) / n
    factor = 1.0
    if max(p for p, _ in pairs) >= SPREAD * min(p for p, _ in pairs):
        slope = sum((p - mean_p) * (m - mean_m) for p, m in pairs) / sum((p - mean_p) ** 2 for p, _ in pairs)
        factor = min(max(slope, FACTORS[0]), FACTORS[1])
    offset = mean_m - factor * mean_p
    worst = max(m - factor * p - offset for p, m in pairs)
    return MemoryCalibration(factor=factor, offset_bytes=offset, worst_bytes=max(0.0, worst), peaks=n)
