"""glibc's allocator: a process that keeps its pages does not fault for what it had before."""

import subprocess
import sys

FAULTS = """
import resource, sys
import torch
from autotune.machine.malloc import keep_pages

def fill(mib):
    torch.ones(mib * 2**18)  # fp32

if sys.argv[1] == "kept":
    keep_pages()
fill(64)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    fill(64)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_what_was_freed_is_not_zeroed_again() -> None:
    """64 MiB are 16,384 pages of 4 KiB each time, or none."""
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", FAULTS, word], check=True, capture_output=True, text=True).stdout)
        for word in ("kept", "given back")
    )
    assert kept < 1000
    assert given_back > 5 * 16_000
