"""From windows to the rows of minibatches: read ahead, hold, cut."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from cellfeed._joinids import IntArray, JoinIds
from cellfeed.plan.windows import Arrival, Window
from cellfeed.rows.cell_rows import Rows
from cellfeed.rows.row_space import PlacedRows, Reader, RowSpace
from cellfeed.rows.slabs import Shelf
from cellfeed.stats import Meter


def load_windows(
    windows: Iterable[Window],
    joinids: JoinIds,
    reader: Reader,
    *,
    read_bounds: Callable[[IntArray], IntArray],
    n_threads: int,
    ahead: int,
    slab_bytes: int,
    meter: Meter,
) -> Generator[Rows, None, None]:
    """Read what windows need with several reads in flight, ``ahead`` windows before they are asked for.

    Yields the cells of each window. Closing the generator ends its threads: reads that have not begun are dropped,
    those that have are waited for.
    """
    threads = ThreadPoolExecutor(n_threads, thread_name_prefix="cellfeed-read")
    pending: deque[tuple[Window, list[_Read]]] = deque()
    pool = _Pool(slab_bytes, meter)

    def submit(arrival: Arrival, shelves: list[Shelf]) -> Iterator[_Read]:
        wanted = joinids[arrival.positions]
        bounds = read_bounds(wanted)
        for low, high in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            space = RowSpace(shelves, arrival.leaves[low:high], pool.lock)
            yield _Read(arrival, low, high, threads.submit(reader.read, wanted[low:high], space))

    try:
        for k, window in enumerate(windows):
            reads: list[_Read] = []
            for arrival in window.arrivals:
                reads += submit(arrival, pool.shelves(k, int(arrival.leaves.max(initial=-1)) + 1))
            pending.append((window, reads))
            if len(pending) > ahead:
                yield pool.next_window(*pending.popleft())
        while pending:
            yield pool.next_window(*pending.popleft())
    finally:
        threads.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True, eq=False)
class _Read:
    """A read under way: cells ``low`` to ``high`` of an arrival."""

    arrival: Arrival
    low: int
    high: int
    rows: Future[PlacedRows]


class _Pool:
    """Cells that have been read and have not left, apart by the window in which they will."""

    def __init__(self, slab_bytes: int, meter: Meter) -> None:
        self._slab_bytes = slab_bytes
        self._meter = meter
        self._gone = 0
        self._leaving: deque[tuple[Shelf, list[Rows]]] = deque()
        self.lock = threading.Lock()

    def shelves(self, k: int, n: int) -> list[Shelf]:
        """Return the shelves of ``n`` windows from window ``k`` on, counted from the first of the feed."""
        while len(self._leaving) < k + n - self._gone:
            self._leaving.append((Shelf(self._slab_bytes, self._meter), []))
        return [self._leaving[after][0] for after in range(k - self._gone, k + n - self._gone)]

    def next_window(self, window: Window, reads: list[_Read]) -> Rows:
        """Take in what was read for a window, and give out the cells that leave in it."""
        for read in reads:
            self._take(read)
        self.shelves(self._gone, 1)
        shelf, shares = self._leaving.popleft()
        self._gone += 1
        return replace(Rows.join(shares).take(window.order[window.gone :]), held=shelf.held)

    def _take(self, read: _Read) -> None:
        arrival, rows = read.arrival, read.rows.result()
        here = slice(read.low, read.high)
        by_window = np.argsort(arrival.leaves[here], kind="stable")
        share = Rows.of(rows, arrival.positions[here], arrival.is_real[here]).take(by_window)
        edges = np.searchsorted(arrival.leaves[here][by_window], np.arange(len(self._leaving) + 1)).tolist()
        for (_, shares), low, high in zip(self._leaving, edges[:-1], edges[1:], strict=True):
            if low < high:
                shares.append(share.cut(low, high))


def cut(windows: Iterator[Rows], batch_size: int) -> Generator[Rows, None, None]:
    """Cut minibatches from the stream of windows; one may span several. The last may be short."""
    parts: list[Rows] = []
    n_held = 0
    for window in windows:
        size, low = len(window), 0
        while low < size:
            high = min(size, low + batch_size - n_held)
            parts.append(window.cut(low, high))
            n_held += high - low
            low = high
            if n_held == batch_size:
                yield Rows.join(parts)
                parts, n_held = [], 0
        del window  # its memory is wanted for the next one
    if parts:
        yield Rows.join(parts)
