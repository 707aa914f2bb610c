"""What is left of an epoch that was begun, perhaps by other ranks and workers: a pure function of a few integers.

An epoch has *segments*: each restore on another layout of ranks and workers begins one. A segment is its layout and
the number of minibatches that each rank received. From these and the order of the epoch follow the cells that have been
yielded, and so the parts of the epoch that are still to be assigned.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cellfeed.plan.epoch import EpochOrder
from cellfeed.plan.schedule import ShufflePlan
from cellfeed.plan.windows import Fetch, ShardWindows, Window


@dataclass(frozen=True)
class WorldLayout:
    """Who walks an epoch, and how much each holds: the same world_layout walks on in the same order.

    Attributes
    ----------
    world_size, num_workers
        Ranks, and reading processes of each.
    mixing
        How each of them mixes chunks.
    """

    world_size: int
    num_workers: int
    mixing: ShufflePlan


@dataclass(frozen=True)
class ResumeSegment:
    """A part of an epoch that was walked.

    Attributes
    ----------
    world_layout
        Who walked.
    received
        Minibatches that the training loop of each rank received; one number if it is the same for all.
    """

    world_layout: WorldLayout
    received: int | tuple[int, ...]

    def received_by(self, rank: int) -> int:
        """Minibatches that a rank received."""
        return self.received if isinstance(self.received, int) else self.received[rank]


@dataclass(frozen=True)
class Shard:
    """Cells ``start`` to ``stop`` of the epoch order, of which ``left`` have left."""

    start: int
    stop: int
    left: int = 0

    def __len__(self) -> int:
        return self.stop - self.start - self.left

    def cut(self, n: int) -> tuple[Shard, Shard]:
        """Divide behind ``n`` cells; none may have left."""
        return replace(self, stop=self.start + n), replace(self, start=self.start + n)

    def behind(self, n: int) -> Shard:
        """Return what is left once ``n`` more cells have left."""
        return replace(self, left=self.left + n)

    def windows(self, plan: EpochOrder) -> Iterator[Window]:
        """Yield the windows in which the cells leave."""
        return ShardWindows(plan, self.start, self.stop).windows(self.left)

    def splittable(self, plan: EpochOrder) -> Pieces:
        """Return the same cells in pieces that can be cut anywhere: what is held, and what has not arrived."""
        if self.left == 0:
            return [self]
        positions, _, end = ShardWindows(plan, self.start, self.stop).held(self.left)
        pieces: Pieces = [Leftover(plan, self, 0, len(positions))] if len(positions) else []
        return pieces + [Shard(end, self.stop)] * (end < self.stop)


@dataclass(frozen=True, eq=False)
class Leftover:
    """Cells ``low`` to ``high`` of those that a stretch held where it was left, in their order of leaving."""

    plan: EpochOrder
    stretch: Shard
    low: int
    high: int

    def __len__(self) -> int:
        return self.high - self.low

    def cut(self, n: int) -> tuple[Leftover, Leftover]:
        """Divide behind ``n`` cells."""
        return replace(self, high=self.low + n), replace(self, low=self.low + n)

    def behind(self, n: int) -> Leftover:
        """Return what is left once ``n`` more cells have left."""
        return replace(self, low=self.low + n)

    def windows(self, plan: EpochOrder) -> Iterator[Window]:
        """Yield windows of these cells; several where more were held than is planned now."""
        walk = ShardWindows(self.plan, self.stretch.start, self.stretch.stop)
        positions, is_real, _ = walk.held(self.stretch.left)
        n_windows = -(-len(self) * (1 + plan.shuffle_plan.windows_ahead) // plan.cells_held)  # as many are read ahead
        for part in np.array_split(np.arange(self.low, self.high), n_windows):
            by_position = part[np.argsort(positions[part], kind="stable")]
            fetch = Fetch(positions[by_position], np.zeros(len(part), np.int64), is_real[by_position])
            yield Window((fetch,), np.argsort(by_position))

    def splittable(self, plan: EpochOrder) -> Pieces:
        """Return the piece itself, which can be cut anywhere."""
        return [self]


Piece = Shard | Leftover
Pieces = list[Piece]


@dataclass(frozen=True)
class ShardAssignment:
    """An epoch dealt out.

    Attributes
    ----------
    ranks
        The pieces of each worker of each rank, in the order in which they are walked.
    left_out
        What the remainder leaves out.
    """

    ranks: list[list[Pieces]]
    left_out: Pieces


def assign_shards(plan: EpochOrder, segments: Sequence[ResumeSegment], world_layout: WorldLayout) -> ShardAssignment:
    """Deal out what some segments left of an epoch.

    Parameters
    ----------
    plan
        Of the epoch.
    segments
        What was walked so far; none at the beginning.
    world_layout
        Who is to walk the rest. The same world_layout goes on in the same order. Another number of workers leaves each
        rank its cells; another number of ranks shares out anew, together with what the last one left out.
    """
    layouts = [*(segment.world_layout for segment in segments), world_layout]
    shares = _assign_first(plan, layouts[0])
    for segment, following in zip(segments, layouts[1:], strict=True):
        left = [
            _workers_behind(workers, segment.received_by(rank), plan.batch_size)
            for rank, workers in enumerate(shares.ranks)
        ]
        shares = _reassign(plan, ShardAssignment(left, shares.left_out), segment.world_layout, following)
    return shares


def windows_of(pieces: Pieces, plan: EpochOrder) -> Iterator[Window]:
    """Yield the windows of some pieces."""
    for piece in pieces:
        yield from piece.windows(plan)


def n_minibatches(pieces: Pieces, batch_size: int) -> int:
    """Minibatches of the cells of one worker."""
    return -(-sum(map(len, pieces)) // batch_size)


def _assign_first(plan: EpochOrder, world_layout: WorldLayout) -> ShardAssignment:
    bounds = plan.rank_shards(plan.n_cells, world_layout.world_size)
    stop = max(plan.n_cells, int(bounds.max(initial=0)))  # further than the last cell, to pad
    ranks, left_out = _cut([Shard(0, stop)], bounds.tolist())
    return ShardAssignment([_to_workers(plan, line, world_layout.num_workers) for line in ranks], left_out)


def _reassign(plan: EpochOrder, shares: ShardAssignment, before: WorldLayout, now: WorldLayout) -> ShardAssignment:
    if now == before:
        return shares
    walked = replace(plan, shuffle_plan=before.mixing)
    lines = [
        [splittable for pieces in workers for piece in pieces for splittable in piece.splittable(walked)]
        for workers in shares.ranks
    ]
    left_out = shares.left_out
    if now.world_size != before.world_size:
        line = [piece for rank in lines for piece in rank] + left_out
        bounds = plan.rank_shards(sum(map(len, line)), now.world_size)
        missing = int(bounds.max(initial=0)) - sum(map(len, line))
        again = (plan.n_cells + k % plan.n_cells for k in range(missing))  # to pad: the first cells once more
        lines, left_out = _cut(line + [Shard(cell, cell + 1) for cell in again], bounds.tolist())
    return ShardAssignment([_to_workers(plan, line, now.num_workers) for line in lines], left_out)


def _to_workers(plan: EpochOrder, line: Pieces, num_workers: int) -> list[Pieces]:
    return _cut(line, plan.worker_shards(sum(map(len, line)), num_workers).tolist())[0]


def _cut(line: Pieces, stretches: list[list[int]]) -> tuple[list[Pieces], Pieces]:
    """Cut a line of pieces into ascending half-open stretches of cells; with what lies between and behind them."""
    waiting, at, parts = list(reversed(line)), 0, []
    left_out: Pieces = []
    for start, stop in stretches:
        left_out += _take(waiting, start - at)
        parts.append(_take(waiting, stop - start))
        at = stop
    return parts, left_out + waiting[::-1]


def _take(waiting: Pieces, n: int) -> Pieces:
    """Take ``n`` cells from the end of a reversed line."""
    taken: Pieces = []
    while n > 0:
        piece = waiting.pop()
        if len(piece) > n:
            piece, rest = piece.cut(n)
            waiting.append(rest)
        taken.append(piece)
        n -= len(piece)
    return taken


def _workers_behind(workers: list[Pieces], received: int, batch_size: int) -> list[Pieces]:
    """Return what the workers of a rank have left once it received some minibatches; whose turn it is comes first."""
    available = [n_minibatches(pieces, batch_size) for pieces in workers]
    counts = received_from_workers(received, available)
    left = [_pieces_behind(pieces, k * batch_size) for pieces, k in zip(workers, counts, strict=True)]
    unfinished = [worker for worker, (k, n) in enumerate(zip(counts, available, strict=True)) if k < n]
    turn = min(unfinished, key=lambda worker: counts[worker], default=0)  # the first of those that gave least
    return left[turn:] + left[:turn]


def _pieces_behind(pieces: Pieces, n: int) -> Pieces:
    for k, piece in enumerate(pieces):
        if n < len(piece):
            return [piece.behind(n), *pieces[k + 1 :]]
        n -= len(piece)
    return []


def received_from_workers(received: int, available: Sequence[int]) -> list[int]:
    """Tell how many of some minibatches came from each worker: in turn, passing over those that have no more.

    That is the order of :class:`torch.utils.data.DataLoader`.

    Examples
    --------
    >>> received_from_workers(5, [2, 1, 4])
    [2, 1, 2]
    """
    received = min(received, sum(available))
    rounds = bisect_right(range(received + 1), received, key=lambda k: sum(min(n, k) for n in available)) - 1
    counts = [min(n, rounds) for n in available]
    for worker, n in enumerate(available):
        if sum(counts) < received and n > rounds:
            counts[worker] += 1
    return counts
