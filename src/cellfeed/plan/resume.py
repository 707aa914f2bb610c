"""The rest of an epoch that was begun, perhaps by other ranks and workers: a pure function of a few integers.

An epoch has *segments*: each restore on another layout of ranks and workers begins one. A segment is its layout and the
number of minibatches that each rank received. These and the order of the epoch determine which cells remain.

With 12 cells in order and ``batch_size=2``, two ranks receive one minibatch each, and three ranks continue::

    two ranks      0 1 2 3 4 5 | 6 7 8 9 10 11
    received       0 1         | 6 7
    rest               2 3 4 5       8 9 10 11
    three ranks        2 3 | 4 5 |   8 9         10 and 11 are left out (rank_remainder="drop")
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from cellfeed.plan.copy_windows import windows_of_shard
from cellfeed.plan.epoch import EpochOrder
from cellfeed.plan.layout import ResumeSegment, WorldLayout, rest_in_turn
from cellfeed.plan.windows import Fetch, Window


@dataclass(frozen=True)
class Shard:
    """Cells ``start`` to ``stop`` of the epoch order; ``n_done`` of them were yielded."""

    start: int
    stop: int
    n_done: int = 0

    def __len__(self) -> int:
        return self.stop - self.start - self.n_done

    def split(self, n: int) -> tuple[Shard, Shard]:
        """Split after ``n`` cells; requires ``n_done == 0``."""
        return replace(self, stop=self.start + n), replace(self, start=self.start + n)

    def skip(self, n: int) -> Shard:
        """Return the shard with ``n`` more cells done."""
        return replace(self, n_done=self.n_done + n)

    def windows(self, order: EpochOrder) -> Iterator[Window]:
        """Yield the windows of the cells that are not done."""
        return windows_of_shard(order, self.start, self.stop).windows(self.n_done)


@dataclass(frozen=True, eq=False)
class Leftover:
    """Cells that were in memory when a shard stopped: numbers ``start`` to ``stop`` in the order of yielding them."""

    order: EpochOrder
    shard: Shard
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def split(self, n: int) -> tuple[Leftover, Leftover]:
        """Split after ``n`` cells."""
        return replace(self, stop=self.start + n), self.skip(n)

    def skip(self, n: int) -> Leftover:
        """Return the cells after the first ``n``."""
        return replace(self, start=self.start + n)

    def windows(self, order: EpochOrder) -> Iterator[Window]:
        """Yield windows of these cells; several if memory now holds fewer cells than before."""
        positions, is_real, _ = windows_of_shard(self.order, self.shard.start, self.shard.stop).held(self.shard.n_done)
        n_held = len(self) * (1 + order.shuffle_plan.windows_ahead)  # windows that are read ahead count
        n_windows = -(-n_held // order.cells_held)
        for part in np.array_split(np.arange(self.start, self.stop), n_windows):  # (n_cells of the window,)
            by_position = part[np.argsort(positions[part], kind="stable")]
            fetch = Fetch(positions[by_position], np.zeros(len(part), np.int64), is_real[by_position])
            yield Window((fetch,), np.argsort(by_position))


Piece = Shard | Leftover
Pieces = list[Piece]


@dataclass(frozen=True)
class ShardAssignment:
    """The cells of each worker.

    Attributes
    ----------
    order
        Order of the epoch.
    ranks
        ``ranks[rank][worker]`` lists pieces in the order of reading.
    left_out
        Pieces that no rank gets: see ``remainder``.
    """

    order: EpochOrder
    ranks: list[list[Pieces]]
    left_out: Pieces

    def work(self, rank: int, worker: int) -> Iterator[Window]:
        """Return the windows of a worker of a rank."""
        return windows_of(self.ranks[rank][worker], self.order)

    def n_minibatches(self, rank: int, batch_size: int) -> int:
        """Return the number of minibatches of a rank."""
        return sum(n_minibatches(pieces, batch_size) for pieces in self.ranks[rank])


def assign_shards(order: EpochOrder, segments: Sequence[ResumeSegment], world_layout: WorldLayout) -> ShardAssignment:
    """Assign the rest of an epoch to ranks and workers.

    The same layout continues in the same order. Another number of workers leaves each rank its cells. Another number of
    ranks assigns all remaining cells again, including those that were left out.

    Parameters
    ----------
    order
        Order of the epoch.
    segments
        What was received so far; empty at the beginning of the epoch.
    world_layout
        Ranks and workers that read the rest.

    Examples
    --------
    The example of the module, with 12 chunks of one cell:

    >>> from cellfeed.plan.schedule import ShufflePlan
    >>> order = EpochOrder(np.arange(13), seed=0, epoch=0, shuffle=False, batch_size=2, shuffle_plan=ShufflePlan(1))
    >>> two, three = (WorldLayout(n, 1, order.shuffle_plan) for n in (2, 3))
    >>> rest = assign_shards(order, [ResumeSegment(two, 1)], three)
    >>> windows = [list(windows_of(pieces, order)) for workers in rest.ranks for pieces in workers]
    >>> [np.concatenate([fetch.positions for w in part for fetch in w.fetches]).tolist() for part in windows]
    [[2, 3], [4, 5], [8, 9]]
    >>> rest.left_out
    [Shard(start=10, stop=12, n_done=0)]
    """
    layouts = [*(segment.world_layout for segment in segments), world_layout]
    shards = _assign_first(order, layouts[0])
    for segment, next_layout in zip(segments, layouts[1:], strict=True):
        ranks = [
            _skip_minibatches(workers, segment.received_by(rank), order.batch_size)
            for rank, workers in enumerate(shards.ranks)
        ]
        shards = _reassign(order, ShardAssignment(order, ranks, shards.left_out), segment.world_layout, next_layout)
    return shards


def windows_of(pieces: Pieces, order: EpochOrder) -> Iterator[Window]:
    """Yield the windows of the pieces of one worker."""
    for piece in pieces:
        yield from piece.windows(order)


def n_minibatches(pieces: Pieces, batch_size: int) -> int:
    """Return the number of minibatches of one worker."""
    return -(-_n_cells(pieces) // batch_size)


def _n_cells(pieces: Pieces) -> int:
    return sum(map(len, pieces))


def _assign_first(order: EpochOrder, world_layout: WorldLayout) -> ShardAssignment:
    bounds = order.rank_shards(order.n_cells, world_layout.world_size)  # (world_size, 2)
    stop = max(order.n_cells, int(bounds.max(initial=0)))  # rank_remainder="pad" ends after the last cell
    ranks, left_out = _split([Shard(0, stop)], bounds.tolist())
    return ShardAssignment(order, [_to_workers(order, pieces, world_layout.num_workers) for pieces in ranks], left_out)


def _reassign(order: EpochOrder, shards: ShardAssignment, before: WorldLayout, now: WorldLayout) -> ShardAssignment:
    if now == before:
        return shards
    order_before = replace(order, shuffle_plan=before.mixing)
    ranks: list[Pieces] = [
        [part for piece in chain(*workers) for part in _splittable(piece, order_before)] for workers in shards.ranks
    ]
    left_out = shards.left_out
    if now.world_size != before.world_size:
        pieces = [*chain(*ranks), *left_out]
        bounds = order.rank_shards(_n_cells(pieces), now.world_size)  # (world_size, 2)
        n_missing = int(bounds.max(initial=0)) - _n_cells(pieces)
        padding = [order.n_cells + k % order.n_cells for k in range(n_missing)]  # rank_remainder="pad" repeats cells
        ranks, left_out = _split(pieces + [Shard(cell, cell + 1) for cell in padding], bounds.tolist())
    return ShardAssignment(order, [_to_workers(order, pieces, now.num_workers) for pieces in ranks], left_out)


def _splittable(piece: Piece, order: EpochOrder) -> Pieces:
    """Return the same cells as pieces that can be split anywhere: those in memory, and those not read yet."""
    if isinstance(piece, Leftover) or piece.n_done == 0:
        return [piece]
    positions, _, end = windows_of_shard(order, piece.start, piece.stop).held(piece.n_done)
    pieces: Pieces = [Leftover(order, piece, 0, len(positions)), Shard(end, piece.stop)]
    return [part for part in pieces if len(part)]


def _to_workers(order: EpochOrder, pieces: Pieces, num_workers: int) -> list[Pieces]:
    return _split(pieces, order.worker_shards(_n_cells(pieces), num_workers).tolist())[0]


def _split(pieces: Pieces, bounds: list[list[int]]) -> tuple[list[Pieces], Pieces]:
    """Split pieces at ascending half-open ranges of cell numbers; also return the cells outside these ranges."""
    waiting, n_taken = deque(pieces), 0
    parts: list[Pieces] = []
    left_out: Pieces = []
    for start, stop in bounds:
        left_out += _take(waiting, start - n_taken)
        parts.append(_take(waiting, stop - start))
        n_taken = stop
    return parts, [*left_out, *waiting]


def _take(waiting: deque[Piece], n: int) -> Pieces:
    """Remove the first ``n`` cells and return them."""
    taken: Pieces = []
    while n > 0:
        piece = waiting.popleft()
        if len(piece) > n:
            piece, rest = piece.split(n)
            waiting.appendleft(rest)
        taken.append(piece)
        n -= len(piece)
    return taken


def _skip_minibatches(workers: list[Pieces], n_received: int, batch_size: int) -> list[Pieces]:
    """Return the rest of each worker of a rank after some minibatches, beginning with the worker whose turn it is."""
    available = [n_minibatches(pieces, batch_size) for pieces in workers]
    return rest_in_turn(n_received, available, lambda worker, n: _skip_cells(workers[worker], n * batch_size))


def _skip_cells(pieces: Pieces, n: int) -> Pieces:
    for k, piece in enumerate(pieces):
        if n < len(piece):
            return [piece.skip(n), *pieces[k + 1 :]]
        n -= len(piece)
    return []
