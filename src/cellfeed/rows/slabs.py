"""Memory of rows, allocated in slabs: rows of the same window share slabs, which are reused when the rows are freed.

The rows of one read belong to dozens of windows. If each read allocated its rows of each window separately, these
allocations would be too small for huge pages and would vary in size, so that freed memory would rarely fit the next
request: clearing pages would take a tenth of the time of reading. Slabs have one size, are cut from regions of huge
pages, and are cleared once per process. The idea is that of Bonwick's slab allocator (USENIX 1994) and of PyTorch's
caching allocators.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import mmap
import platform
import weakref
from collections import deque
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from cellfeed._checks import is_enabled

SLAB_BYTES = 1 << 20
"""Size of the slabs that are kept for reuse. Smaller slabs, for small budgets, come from the heap."""

MIN_SLAB_BYTES = 1 << 12
"""Smallest size of a slab: below it, the cost per slab exceeds the benefit."""

HUGE_PAGE_BYTES = 2 << 20

REGION_BYTES = 32 << 20
"""Bytes that are requested from the system at a time."""

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8

MALLOC_SETTINGS = {
    _M_MMAP_THRESHOLD: 32 << 20,  # the largest value that glibc permits
    _M_TRIM_THRESHOLD: 2**31 - 1,
    _M_TOP_PAD: 64 << 20,
    _M_ARENA_MAX: 1,
}

_free: deque[npt.NDArray[np.uint8]] = deque()  # append and pop are atomic: any thread may free a slab at any time


@functools.cache
def keep_freed_memory() -> bool:
    """Configure glibc's allocator, once per process, to keep freed buffers; return whether it is configured.

    By default glibc maps fresh pages for each buffer of tens of megabytes and unmaps them when the buffer is freed:
    clearing pages takes half of the time of reading. With these settings freed buffers stay in the process, and all
    threads share one heap, so that one thread can reuse the buffers that another has freed. ``CELLFEED_MALLOC=0`` in
    the environment leaves the allocator unchanged, as do systems without glibc.
    """
    if not is_enabled("CELLFEED_MALLOC", default=True) or platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    statuses = [mallopt(parameter, value) for parameter, value in MALLOC_SETTINGS.items()]
    return all(status == 1 for status in statuses)


def choose_slab_bytes(pool_bytes: float, n_windows: int) -> int:
    """Return the size of slabs; each open window has one slab that is half empty on average.

    These slabs may take about an eighth of the pool:

    >>> choose_slab_bytes(pool_bytes=2**30, n_windows=200), choose_slab_bytes(pool_bytes=2**26, n_windows=200)
    (524288, 32768)
    """
    return max(MIN_SLAB_BYTES, min(SLAB_BYTES, 1 << int(math.log2(max(pool_bytes / (8 * n_windows), 1.0)))))


class Slab:
    """A block of memory; it returns to its pool when this object is garbage-collected."""

    __slots__ = ("__weakref__", "address", "n_bytes")

    def __init__(self, memory: npt.NDArray[np.uint8]) -> None:
        self.address = int(memory.ctypes.data)
        self.n_bytes = memory.nbytes


class SlabPool:
    """Allocates slabs and reports the change of its size. Thread-safe.

    Parameters
    ----------
    slab_bytes
        Size of a slab.
    on_change
        Called with the number of bytes by which the pool grows, negative if it shrinks.
    """

    def __init__(self, slab_bytes: int, on_change: Callable[[int], object]) -> None:
        self._slab_bytes = slab_bytes
        self._on_change = on_change

    def allocate(self, n_bytes: int) -> Slab:
        """Return a slab of at least ``n_bytes``."""
        n_bytes = max(n_bytes, self._slab_bytes)
        memory = _take() if n_bytes == SLAB_BYTES and keep_freed_memory() else np.empty(n_bytes, np.uint8)
        slab = Slab(memory)
        self._on_change(n_bytes)
        weakref.finalize(slab, _give_back, memory, self._on_change).atexit = False
        return slab


def _take() -> npt.NDArray[np.uint8]:
    while True:
        try:
            return _free.pop()  # the slab that was freed last: it may still be in a cache
        except IndexError:
            _free.extend(_new_region())


def _new_region() -> list[npt.NDArray[np.uint8]]:
    # By default Python's mappings are shared with forked processes and have no huge pages.
    mapped = mmap.mmap(-1, REGION_BYTES + HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory = np.frombuffer(mapped, np.uint8)
    start = -memory.ctypes.data % HUGE_PAGE_BYTES
    with contextlib.suppress(AttributeError, OSError):  # other systems, and kernels built without huge pages
        mapped.madvise(mmap.MADV_HUGEPAGE)
    region = memory[start : start + REGION_BYTES]
    return [region[low : low + SLAB_BYTES] for low in range(0, REGION_BYTES, SLAB_BYTES)]


def _give_back(memory: npt.NDArray[np.uint8], on_change: Callable[[int], object]) -> None:
    on_change(-memory.nbytes)
    if memory.nbytes == SLAB_BYTES and keep_freed_memory():
        _free.append(memory)


class Arena:
    """The slabs of the rows of one window, filled one after another.

    Attributes
    ----------
    free, end
        Addresses in the current slab: of the next free byte, and of the first byte after the slab.
    """

    def __init__(self, pool: SlabPool) -> None:
        self._pool = pool
        self._slabs: list[Slab] = []
        self.free = self.end = 0

    def extend(self, n_bytes: int) -> None:
        """Begin a new slab of at least ``n_bytes``."""
        slab = self._pool.allocate(n_bytes)
        self._slabs.append(slab)
        self.free, self.end = slab.address, slab.address + slab.n_bytes

    @property
    def n_bytes(self) -> int:
        """Bytes of the slabs."""
        return sum(slab.n_bytes for slab in self._slabs)

    @property
    def slabs(self) -> tuple[Slab, ...]:
        """The slabs; the memory of the rows stays valid while they are referenced."""
        return tuple(self._slabs)
