"""glibc's allocator, told to keep what is freed: on a CPU a quarter of a step can be the kernel zeroing pages again.

Leaves out GPUs, whose allocator is torch's own (train/task.py).
"""

import ctypes
import mmap
import os
import sys

NEVER = -1  # of trimming
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc malloc.h
MADV_HUGEPAGE = 14  # linux/mman.h
RESERVED = 1 / 2  # of the machine's memory: so far the heap is in huge pages, of which there are fewer to be zeroed


def keep_pages() -> None:
    """Keep freed pages in this process from now on, and take new ones in large pieces.

    The same as MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_THRESHOLD_ and GLIBC_TUNABLES=glibc.malloc.hugetlb=1, which a forked
    worker can no longer set. Does nothing where there is no glibc.
    """
    libc = ctypes.CDLL(None)
    if sys.platform != "linux" or not hasattr(libc, "mallopt"):
        return
    libc.mallopt(M_MMAP_MAX, 0)  # no block is mapped by itself
    libc.mallopt(M_TRIM_THRESHOLD, NEVER)
    _advise_huge_pages(libc)


def _advise_huge_pages(libc: ctypes.CDLL) -> None:
    """Grow the heap without touching it, ask for huge pages there, and give it back to the heap."""
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes, libc.madvise.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size = int(RESERVED * os.sysconf("SC_PHYS_PAGES")) * mmap.PAGESIZE
    if (block := libc.malloc(size)) is not None:
        first = -(-block // mmap.PAGESIZE) * mmap.PAGESIZE
        libc.madvise(first, block + size - first, MADV_HUGEPAGE)
        libc.free(block)
