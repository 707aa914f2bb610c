"""Memory for rows that leave together: it is taken in slabs, and a slab is used again when the last has left.

Rows of one read leave in dozens of windows. If each read made room for its share of each window, memory would come in
pieces too small for huge pages and in sizes that never fit again: clearing pages would cost a tenth of reading. Slabs
of one size, cut from regions of huge pages, are cleared once a process. The idea is that of the slab allocator of
Bonwick (USENIX 1994), and of PyTorch's caching allocators.
"""

from __future__ import annotations

import math
import mmap
import weakref
from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt

from cellfeed.rows.heap import keep_freed_memory
from cellfeed.stats import Meter

SLAB_BYTES = 1 << 20
"""A slab that is kept for its next use; smaller ones, of small budgets, come from the heap."""

MIN_SLAB_BYTES = 1 << 12
"""A smaller slab is not worth its administration."""

HUGE_PAGE_BYTES = 2 << 20

REGION_BYTES = 32 << 20

_free: deque[npt.NDArray[np.uint8]] = deque()  # append and pop are atomic: slabs end in any thread, at any moment


def choose_slab_bytes(pool_bytes: float, n_windows: int) -> int:
    """Return the size of a slab: each open window has one that is half empty, which is to be little of the pool."""
    return max(MIN_SLAB_BYTES, min(SLAB_BYTES, 1 << int(math.log2(max(pool_bytes / (8 * n_windows), 1.0)))))


class Slab:
    """Some memory, given back when nobody holds this object any more.

    Parameters
    ----------
    n_bytes
        Its size.
    meter
        Told of it as of bytes in the pool.
    """

    __slots__ = ("__weakref__", "address", "n_bytes")

    def __init__(self, n_bytes: int, meter: Meter) -> None:
        memory = _take() if n_bytes == SLAB_BYTES and keep_freed_memory() else np.empty(n_bytes, np.uint8)
        self.address = int(memory.ctypes.data)
        self.n_bytes = n_bytes
        meter.hold(n_bytes)
        weakref.finalize(self, _give_back, memory, meter).atexit = False


def _take() -> npt.NDArray[np.uint8]:
    while True:
        try:
            return _free.pop()  # the last one that was given back: it may still be in a cache
        except IndexError:
            _free.extend(_new_region())


def _new_region() -> list[npt.NDArray[np.uint8]]:
    # Python's mappings are shared unless it is told otherwise: with forked processes, and without huge pages.
    mapped = mmap.mmap(-1, REGION_BYTES + HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory = np.frombuffer(mapped, np.uint8)
    start = -memory.ctypes.data % HUGE_PAGE_BYTES
    if hasattr(mmap, "MADV_HUGEPAGE"):
        mapped.madvise(mmap.MADV_HUGEPAGE)
    region = memory[start : start + REGION_BYTES]
    return [region[at : at + SLAB_BYTES] for at in range(0, REGION_BYTES, SLAB_BYTES)]


def _give_back(memory: npt.NDArray[np.uint8], meter: Meter) -> None:
    meter.hold(-memory.nbytes)
    if memory.nbytes == SLAB_BYTES and keep_freed_memory():
        _free.append(memory)


class Arena:
    """The slabs of rows that leave together; filled one after another.

    Attributes
    ----------
    at, end
        Addresses: of the next free byte, and of the first one behind the slab.
    """

    def __init__(self, slab_bytes: int, meter: Meter) -> None:
        self._slab_bytes = slab_bytes
        self._meter = meter
        self._slabs: list[Slab] = []
        self.at = self.end = 0

    def extend(self, n_bytes: int) -> None:
        """Begin a new slab, of so many bytes at least."""
        slab = Slab(max(n_bytes, self._slab_bytes), self._meter)
        self._slabs.append(slab)
        self.at, self.end = slab.address, slab.address + slab.n_bytes

    @property
    def held(self) -> tuple[Any, ...]:
        """What must live for as long as the rows are wanted."""
        return tuple(self._slabs)
