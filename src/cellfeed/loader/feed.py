"""From windows to the rows of minibatches: read ahead, hold, cut."""

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
from cellfeed.rows.slabs import Arena
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
    """Read what windows need with several reads in flight, ``ahead`` windows before they are asked for.

    Yields the cells of each window. Closing the generator ends its threads: reads that have not begun are dropped,
    those that have are waited for. ``read`` is called in several threads.
    """
    threads = ThreadPoolExecutor(n_threads, thread_name_prefix="cellfeed-read")
    pending: deque[tuple[Window, list[_Read]]] = deque()
    pool = _Pool(slab_bytes, meter)

    def submit(fetch: Fetch, arenas: list[Arena]) -> Iterator[_Read]:
        wanted = joinids[fetch.positions]
        bounds = read_bounds(wanted)
        for low, high in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            space = RowAllocator(arenas, fetch.leaves[low:high], pool.lock)
            rows = threads.submit(read, fetch.positions[low:high], wanted[low:high], space)
            yield _Read(fetch, low, high, rows)

    try:
        for k, window in enumerate(windows):
            reads: list[_Read] = []
            for fetch in window.fetches:
                reads += submit(fetch, pool.arenas(k, int(fetch.leaves.max(initial=-1)) + 1))
            pending.append((window, reads))
            if len(pending) > ahead:
                yield pool.next_window(*pending.popleft())
        while pending:
            yield pool.next_window(*pending.popleft())
    finally:
        threads.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True, eq=False)
class _Read:
    """A read under way: cells ``low`` to ``high`` of an fetch."""

    fetch: Fetch
    low: int
    high: int
    rows: Future[RowPointers]


class _Pool:
    """Cells that have been read and have not left, apart by the window in which they will."""

    def __init__(self, slab_bytes: int, meter: Meter) -> None:
        self._slab_bytes = slab_bytes
        self._meter = meter
        self._gone = 0
        self._leaving: deque[tuple[Arena, list[CellRows]]] = deque()
        self.lock = threading.Lock()

    def arenas(self, k: int, n: int) -> list[Arena]:
        """Return the arenas of ``n`` windows from window ``k`` on, counted from the first of the feed."""
        while len(self._leaving) < k + n - self._gone:
            self._leaving.append((Arena(self._slab_bytes, self._meter), []))
        return [self._leaving[after][0] for after in range(k - self._gone, k + n - self._gone)]

    def next_window(self, window: Window, reads: list[_Read]) -> CellRows:
        """Take in what was read for a window, and give out the cells that leave in it."""
        for read in reads:
            self._take(read)
        self.arenas(self._gone, 1)
        arena, shares = self._leaving.popleft()
        self._gone += 1
        return replace(CellRows.join(shares).take(window.order[window.gone :]), held=arena.held)

    def _take(self, read: _Read) -> None:
        fetch, rows = read.fetch, read.rows.result()
        here = slice(read.low, read.high)
        by_window = np.argsort(fetch.leaves[here], kind="stable")
        share = CellRows.of(rows, fetch.positions[here], fetch.is_real[here]).take(by_window)
        edges = np.searchsorted(fetch.leaves[here][by_window], np.arange(len(self._leaving) + 1)).tolist()
        for (_, shares), low, high in zip(self._leaving, edges[:-1], edges[1:], strict=True):
            if low < high:
                shares.append(share.cut(low, high))


def rebatch(windows: Iterator[CellRows], batch_size: int) -> Generator[CellRows, None, None]:
    """Cut minibatches from the stream of windows; one may span several. The last may be short."""
    parts: list[CellRows] = []
    n_held = 0
    for window in windows:
        size, low = len(window), 0
        while low < size:
            high = min(size, low + batch_size - n_held)
            parts.append(window.cut(low, high))
            n_held += high - low
            low = high
            if n_held == batch_size:
                yield CellRows.join(parts)
                parts, n_held = [], 0
        del window  # its memory is wanted for the next one
    if parts:
        yield CellRows.join(parts)
