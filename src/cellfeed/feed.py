"""From windows to the rows of minibatches: read ahead, hold, cut."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from cellfeed.block import Block, Reader
from cellfeed.joinids import IntArray, JoinIds
from cellfeed.plan import Window
from cellfeed.rows import Rows
from cellfeed.stats import Meter


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
    """Read windows with several reads in flight, ``ahead`` windows before they are asked for.

    At most ``ahead + 1`` windows are held. Closing the generator ends its threads: reads that have not
    begun are dropped, those that have are waited for.
    """
    pending: deque[tuple[Window, list[Future[Block]]]] = deque()
    pool = ThreadPoolExecutor(n_threads, thread_name_prefix="cellfeed-read")

    def submit(window: Window) -> None:
        wanted = joinids[window.arrivals]
        bounds = read_bounds(wanted)
        reads = [pool.submit(reader.read, wanted[a:b]) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
        pending.append((window, reads))

    try:
        for window in windows:
            submit(window)
            if len(pending) > ahead:
                yield _collect(*pending.popleft(), meter)
        while pending:
            yield _collect(*pending.popleft(), meter)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _collect(window: Window, reads: list[Future[Block]], meter: Meter) -> Rows:
    rows = Rows.of([read.result() for read in reads], window.order, window.arrivals, window.is_real)
    n_bytes = sum(block.nbytes for block in rows.held)
    meter.hold(n_bytes)
    for block in rows.held:  # a window is gone when all of its blocks are
        weakref.finalize(block, meter.hold, -block.nbytes).atexit = False
    return rows


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
