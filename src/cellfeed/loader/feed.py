"""From windows to the rows of minibatches: read ahead, keep in memory, divide into batches."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from cellfeed._joinids import IntArray, JoinIds
from cellfeed.plan.windows import Fetch, Window
from cellfeed.rows.cell_rows import CellRows
from cellfeed.rows.row_allocator import RowAllocator, RowPointers
from cellfeed.rows.slabs import Arena, SlabPool
from cellfeed.stats import Meter

ReadRows = Callable[[IntArray, IntArray, RowAllocator], RowPointers]
"""Reads rows: receives the positions of cells, their joinids, and memory for the rows."""


def load_windows(
    windows: Iterable[Window],
    joinids: JoinIds,
    read: ReadRows,
    *,
    read_bounds: Callable[[IntArray], IntArray],
    n_threads: int,
    ahead: int,
    slab_bytes: int,
    meter: Meter,
) -> Generator[CellRows, None, None]:
    """Yield the cells of each window, with several reads in progress.

    Closing the generator cancels reads that have not started, and waits for the others.

    Parameters
    ----------
    windows
        The windows of an epoch, in order.
    joinids
        The joinids of the selection, indexed by position. This is the only conversion from one to the other.
    read
        Reads rows; called in several threads.
    read_bounds
        Divides ascending joinids into reads; see :func:`cellfeed._joinids.read_bounds`.
    n_threads
        Number of reads in progress at once.
    ahead
        Number of windows whose reads start before the window that is yielded next.
    slab_bytes
        Bytes that an arena allocates at once.
    meter
        Counts the bytes in memory.
    """
    threads = ThreadPoolExecutor(n_threads, thread_name_prefix="cellfeed-read")
    pending: deque[tuple[Window, list[_Read]]] = deque()
    pool = _Pool(slab_bytes, meter)

    def submit(fetch: Fetch, arenas: list[Arena]) -> Iterator[_Read]:
        wanted = joinids[fetch.positions]
        bounds = read_bounds(wanted)
        for low, high in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            allocator = RowAllocator(arenas, fetch.window_offset[low:high], pool.lock)
            rows = threads.submit(_read_once, read, fetch.positions[low:high], wanted[low:high], allocator)
            yield _Read(fetch, low, high, rows)

    try:
        for k, window in enumerate(windows):
            reads: list[_Read] = []
            for fetch in window.fetches:
                reads += submit(fetch, pool.arenas(k, int(fetch.window_offset.max(initial=-1)) + 1))
            pending.append((window, reads))
            if len(pending) > ahead:
                yield pool.next_window(*pending.popleft())
        while pending:
            yield pool.next_window(*pending.popleft())
    finally:
        threads.shutdown(wait=True, cancel_futures=True)


def _read_once(read: ReadRows, positions: IntArray, joinids: IntArray, allocator: RowAllocator) -> RowPointers:
    """Read rows; a row of which there are several copies is read once and copied."""
    is_first = np.diff(positions, prepend=-1) > 0
    if is_first.all():
        return read(positions, joinids, allocator)
    rows = read(positions[is_first], joinids[is_first], allocator.take(np.flatnonzero(is_first)))
    return rows.repeat(np.cumsum(is_first) - 1, allocator)


@dataclass(frozen=True, eq=False)
class _Read:
    """A read in progress: the cells from index ``low`` to ``high`` of a fetch."""

    fetch: Fetch
    low: int
    high: int
    rows: Future[RowPointers]


class _Pool:
    """The cells in memory, grouped by the window that yields them."""

    def __init__(self, slab_bytes: int, meter: Meter) -> None:
        self._slabs = SlabPool(slab_bytes, meter.hold)
        self._n_yielded = 0
        self._windows: deque[tuple[Arena, list[CellRows]]] = deque()  # from the next window on
        self.lock = threading.Lock()

    def arenas(self, k: int, n_windows: int) -> list[Arena]:
        """Return the arenas of the windows from ``k`` to ``k + n_windows``, counted from the first of the epoch."""
        while len(self._windows) < k + n_windows - self._n_yielded:
            self._windows.append((Arena(self._slabs), []))
        return [self._windows[i][0] for i in range(k - self._n_yielded, k + n_windows - self._n_yielded)]

    def next_window(self, window: Window, reads: list[_Read]) -> CellRows:
        """Add the cells of reads, and remove and return the cells of the next window in its order."""
        for read in reads:
            self._add(read)
        self.arenas(self._n_yielded, 1)
        arena, parts = self._windows.popleft()
        self._n_yielded += 1
        return replace(CellRows.join(parts).take(window.order[window.n_skipped :]), owners=arena.slabs)

    def _add(self, read: _Read) -> None:
        """Wait for a read, and add its rows to the windows that yield them."""
        part = slice(read.low, read.high)
        offsets = read.fetch.window_offset[part]  # (n_cells,), windows from the next one on
        by_window = np.argsort(offsets, kind="stable")
        rows = CellRows.from_pointers(read.rows.result(), read.fetch.positions[part], read.fetch.is_real[part]).take(
            by_window
        )
        edges = np.searchsorted(offsets[by_window], np.arange(len(self._windows) + 1)).tolist()  # (n_windows + 1,)
        for (_, parts), low, high in zip(self._windows, edges[:-1], edges[1:], strict=True):
            if low < high:
                parts.append(rows.slice(low, high))


def rebatch(windows: Iterator[CellRows], sizes: Iterable[int]) -> Generator[CellRows, None, None]:
    """Yield batches of the given sizes from the cells of consecutive windows; a batch may span several.

    It ends with the sizes, or with the cells; then the last batch may be smaller.
    """
    parts: list[CellRows] = []
    remaining = iter(sizes)
    n_missing = next(remaining, 0)  # cells until the batch is complete
    for window in windows:
        size, low = len(window), 0
        while low < size and n_missing:
            high = min(size, low + n_missing)
            parts.append(window.slice(low, high))
            n_missing -= high - low
            low = high
            if n_missing == 0:
                yield CellRows.join(parts)
                parts, n_missing = [], next(remaining, 0)
        del window  # a reference here would prevent the reuse of its memory
        if not n_missing:
            return
    if parts:
        yield CellRows.join(parts)
