"""The ranks and workers that share an epoch, and what they received of it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from cellfeed.plan.schedule import ShufflePlan


@dataclass(frozen=True)
class WorldLayout:
    """Ranks and workers that share an epoch, and how they shuffle. The same layout continues in the same order.

    Attributes
    ----------
    world_size, num_workers
        Number of ranks, and of reading processes per rank.
    mixing
        How each reading process shuffles chunks.
    """

    world_size: int
    num_workers: int
    mixing: ShufflePlan


@dataclass(frozen=True)
class ResumeSegment:
    """A part of an epoch that was received on one layout.

    Attributes
    ----------
    world_layout
        The ranks and workers.
    n_received
        Number of minibatches that the training loop of each rank received; one integer if all received the same number.
    """

    world_layout: WorldLayout
    n_received: int | tuple[int, ...]

    def received_by(self, rank: int) -> int:
        """Return the number of minibatches that a rank received."""
        return self.n_received if isinstance(self.n_received, int) else self.n_received[rank]


T = TypeVar("T")


def rest_in_turn(n_received: int, available: Sequence[int], rest: Callable[[int, int], T]) -> list[T]:
    """Return the rest of each worker of a rank after some minibatches, beginning with the worker whose turn it is.

    Parameters
    ----------
    n_received
        Minibatches that the rank received.
    available
        Minibatches of each worker.
    rest
        Returns the rest of a worker after some of its minibatches; an empty one is false.
    """
    counts = received_from_workers(n_received, available)
    rests = [rest(worker, n) for worker, n in enumerate(counts)]
    unfinished = [worker for worker, own in enumerate(rests) if own]
    turn = min(unfinished, key=counts.__getitem__, default=0)  # the first of those that yielded the fewest
    return rests[turn:] + rests[:turn]


def first_layout(segments: Sequence[ResumeSegment], world_layout: WorldLayout) -> WorldLayout:
    """Return the layout with which an epoch began; ``world_layout`` reads the rest."""
    return segments[0].world_layout if segments else world_layout


def received_from_workers(n_received: int, available: Sequence[int]) -> list[int]:
    """Return how many of the minibatches that a rank received came from each worker.

    Workers take turns, in the order of :class:`torch.utils.data.DataLoader`; a worker that has no more minibatches is
    skipped. If ``k`` rounds are complete, worker ``w`` yielded ``min(available[w], k)`` minibatches. The rest comes
    from the first workers that have more than ``k``.

    Examples
    --------
    Five minibatches come from workers 0, 1, 2, 0, 2: one complete round and two minibatches of the next.

    >>> received_from_workers(5, [2, 1, 4])
    [2, 1, 2]
    """
    n_received = min(n_received, sum(available))
    n_rounds = bisect_right(range(n_received + 1), n_received, key=lambda k: sum(min(n, k) for n in available)) - 1
    counts = [min(n, n_rounds) for n in available]
    for worker, n in enumerate(available):
        if sum(counts) < n_received and n > n_rounds:
            counts[worker] += 1
    return counts
