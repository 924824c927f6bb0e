"""Calibration of memory: how the measured peaks of trials follow from the predicted ones.

Each method has a factor and an offset, and no more. The factor is what the allocator rounds and splits. The offset is
what lives beside the tensors that a trace sees: libraries and the caches of their kernels. Both are fitted to trials
on this machine, so the predictions improve as a search goes on.

Symbols: p predicted bytes and m measured bytes of a trial, m ~ factor p + offset.
"""

from collections.abc import Iterable
from dataclasses import dataclass

FACTORS = (0.8, 1.25)  # smallest and largest; peaks that ask for another one differ for other reasons
SPREAD = 1.2  # largest over smallest p; with less a factor cannot be told from an offset


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryCalibration:
    """How measured peaks of one method follow from predicted ones. By default nothing is known: both are equal.

    worst_bytes: the most by which a measured peak exceeded factor p + offset. peaks: how many trials this is fitted to.
    """

    factor: float = 1.0
    offset_bytes: float = 0.0
    worst_bytes: float = 0.0
    peaks: int = 0

    def expected(self, predicted_bytes: float) -> float:
        """The peak to expect, in bytes."""
        return max(0.0, self.factor * predicted_bytes + self.offset_bytes)

    def at_most(self, predicted_bytes: float) -> float:
        """The expected peak plus the largest excess so far, in bytes. This is compared with the limit."""
        return self.expected(predicted_bytes) + self.worst_bytes


def calibrate_memory(peaks: Iterable[tuple[float, float]]) -> MemoryCalibration:
    """Fit a calibration to (predicted, measured) bytes of the trials of one method, by least squares."""
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
