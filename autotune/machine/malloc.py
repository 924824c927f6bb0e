"""Tell glibc's allocator to keep freed memory: on a CPU the kernel can spend a quarter of a step on zeroing pages.

Leaves out GPUs, whose allocator is torch's own (train/task.py).
"""

import ctypes
import mmap
import os
import sys

NEVER = -1  # as a threshold of trimming
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc malloc.h
MADV_HUGEPAGE = 14  # linux/mman.h
RESERVED = 1 / 2  # share of the machine's memory that the heap has in huge pages, which take less time to be zeroed


def keep_pages() -> None:
    """Keep freed pages in this process from now on, and take new ones in large pieces.

    The same as MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_THRESHOLD_ and GLIBC_TUNABLES=glibc.malloc.hugetlb=1, which come too
    late for a forked worker. Does nothing where there is no glibc.
    """
    libc = ctypes.CDLL(None)
    if sys.platform != "linux" or not hasattr(libc, "mallopt"):
        return
    libc.mallopt(M_MMAP_MAX, 0)  # large blocks come from the heap, too
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
