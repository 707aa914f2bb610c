"""From windows to the rows of minibatches: read ahead, hold, cut."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from cellfeed.block import Block, Reader
from cellfeed.joinids import IntArray, JoinIds
from cellfeed.rows import Rows
from cellfeed.stats import Meter
from cellfeed.walk import Arrival, Window


def load_windows(
    windows: Iterable[Window],
    joinids: JoinIds,
    reader: Reader,
    *,
    read_bounds: Callable[[IntArray], IntArray],
    n_threads: int,
    ahead: int,
    meter: Meter,
) -> Generator[Rows, None, None]:
    """Read what windows need with several reads in flight, ``ahead`` windows before they are asked for.

    Yields the cells of each window. Closing the generator ends its threads: reads that have not begun are dropped,
    those that have are waited for.
    """
    threads = ThreadPoolExecutor(n_threads, thread_name_prefix="cellfeed-read")
    pending: deque[tuple[Window, list[_Read]]] = deque()
    pool = _Pool(meter)

    def submit(arrival: Arrival) -> Iterator[_Read]:
        wanted = joinids[arrival.positions]
        bounds = read_bounds(wanted)
        n_parts = int(arrival.leaves.max(initial=0)) + 1
        for low, high in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            blocks = threads.submit(reader.read, wanted[low:high], arrival.leaves[low:high], n_parts)
            yield _Read(arrival, low, high, blocks)

    try:
        for window in windows:
            pending.append((window, [read for arrival in window.arrivals for read in submit(arrival)]))
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
    blocks: Future[list[Block]]


@dataclass(frozen=True, eq=False)
class _Share:
    """Cells of one read that leave together."""

    block: Block
    arrival: Arrival
    places: IntArray


class _Pool:
    """Cells that have been read and have not left, apart by the window in which they will."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._leaving: deque[list[_Share]] = deque()

    def next_window(self, window: Window, reads: list[_Read]) -> Rows:
        """Take in what was read for a window, and give out the cells that leave in it."""
        for read in reads:
            self._take(read)
        shares = self._leaving.popleft() if self._leaving else []
        positions = [share.arrival.positions[share.places] for share in shares]
        is_real = [share.arrival.is_real[share.places] for share in shares]
        return Rows.of(
            [share.block for share in shares],
            window.order[window.gone :],
            np.concatenate([*positions, np.empty(0, np.int64)]),
            np.concatenate([*is_real, np.empty(0, np.bool_)]),
        )

    def _take(self, read: _Read) -> None:
        leaves = read.arrival.leaves[read.low : read.high]
        by_window = np.argsort(leaves, kind="stable")
        blocks = read.blocks.result()
        edges = np.searchsorted(leaves[by_window], np.arange(len(blocks) + 1))
        while len(self._leaving) < len(blocks):
            self._leaving.append([])
        for after, block in enumerate(blocks):
            if block.n_rows == 0:
                continue
            self._meter.hold(block.nbytes)
            weakref.finalize(block, self._meter.hold, -block.nbytes).atexit = False
            places = read.low + by_window[edges[after] : edges[after + 1]]
            self._leaving[after].append(_Share(block, read.arrival, places))


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
