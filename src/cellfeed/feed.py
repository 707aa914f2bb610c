"""From windows to the rows of minibatches: read ahead, hold, cut."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cellfeed.block import Block, Reader
from cellfeed.joinids import IntArray, JoinIds
from cellfeed.plan import Window
from cellfeed.stats import Meter


@dataclass(frozen=True, eq=False)
class Pick:
    """Rows of one block and their places in a minibatch (int64 each, same length)."""

    block: Block
    rows: IntArray
    targets: IntArray


@dataclass(frozen=True, eq=False)
class Draft:
    """A minibatch before its tensors are made.

    Attributes
    ----------
    positions
        int64, shape (B,): the cells, in order.
    is_real
        bool, shape (B,): False where a cell repeats another to even out the ranks.
    picks
        Where the rows of X are.
    """

    positions: IntArray
    is_real: npt.NDArray[np.bool_]
    picks: list[Pick]


@dataclass(frozen=True, eq=False)
class _Loaded:
    """A window whose rows are in memory: block ``i`` holds arrivals ``bounds[i]`` to ``bounds[i + 1]``."""

    window: Window
    bounds: IntArray
    blocks: list[Block]

    @property
    def nbytes(self) -> int:
        return sum(block.nbytes for block in self.blocks)

    def draft(self, low: int, high: int, target: int) -> Draft:
        """Leavers ``low`` to ``high`` of the window, as places ``target`` onwards of a minibatch."""
        arrival = self.window.order[low:high]
        block = np.searchsorted(self.bounds, arrival, side="right") - 1
        by_block = np.argsort(block, kind="stable")
        met, starts = np.unique(block[by_block], return_index=True)
        picks = [
            Pick(self.blocks[b], arrival[part] - self.bounds[b], part + target)
            for b, part in zip(met.tolist(), np.split(by_block, starts[1:]), strict=True)
        ]
        return Draft(self.window.arrivals[arrival], self.window.is_real[arrival], picks)


def load_windows(
    windows: Iterable[Window],
    joinids: JoinIds,
    reader: Reader,
    *,
    read_bounds: Callable[[IntArray], IntArray],
    n_threads: int,
    ahead: int,
    meter: Meter,
) -> Generator[_Loaded, None, None]:
    """Read windows with several reads in flight, ``ahead`` windows before they are asked for.

    At most ``ahead + 1`` windows are held. Closing the generator ends its threads: reads that have not
    begun are dropped, those that have are waited for.
    """
    pending: deque[tuple[Window, IntArray, list[Future[Block]]]] = deque()
    pool = ThreadPoolExecutor(n_threads, thread_name_prefix="cellfeed-read")

    def submit(window: Window) -> None:
        wanted = joinids[window.arrivals]
        bounds = read_bounds(wanted)
        reads = [pool.submit(reader.read, wanted[a:b]) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
        pending.append((window, bounds, reads))

    try:
        for window in windows:
            submit(window)
            if len(pending) > ahead:
                yield _collect(*pending.popleft(), meter)
        while pending:
            yield _collect(*pending.popleft(), meter)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _collect(window: Window, bounds: IntArray, reads: list[Future[Block]], meter: Meter) -> _Loaded:
    loaded = _Loaded(window, bounds, [read.result() for read in reads])
    meter.hold(loaded.nbytes)
    weakref.finalize(loaded, meter.hold, -loaded.nbytes).atexit = False
    return loaded


def cut(loaded: Iterator[_Loaded], batch_size: int) -> Generator[Draft, None, None]:
    """Cut minibatches from the stream of windows; one may span several. The last may be short."""
    parts: list[Draft] = []
    n_held = 0
    for held in loaded:
        size, low = len(held.window.order), 0
        while low < size:
            high = min(size, low + batch_size - n_held)
            parts.append(held.draft(low, high, n_held))
            n_held += high - low
            low = high
            if n_held == batch_size:
                yield _join(parts)
                parts, n_held = [], 0
        del held  # its memory is wanted for the next one
    if parts:
        yield _join(parts)


def _join(parts: list[Draft]) -> Draft:
    if len(parts) == 1:
        return parts[0]
    return Draft(
        np.concatenate([part.positions for part in parts]),
        np.concatenate([part.is_real for part in parts]),
        [pick for part in parts for pick in part.picks],
    )
