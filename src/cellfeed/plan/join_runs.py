"""Which minibatches of an epoch of a join each rank and worker makes, also after a resume on another layout.

The ranks with which an epoch began determine its minibatches. A *run* is consecutive minibatches of one of these
ranks. A rank gets whole minibatches, so that a resume changes none of them. If the remaining ones do not divide evenly
among the ranks, each of the last ones is divided among all ranks.

With five minibatches of each of two ranks, of which two were received, three ranks continue::

    rank 0          0 1 2 3 4        rank 1          5 6 7 8 9
    received        0 1                              5 6
    rank 0 of 3         2 3          rank 1 of 3     4   7        rank 2 of 3     8 9
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from cellfeed.errors import StateError
from cellfeed.plan.layout import ResumeSegment, WorldLayout, rest_in_turn


@dataclass(frozen=True)
class Run:
    """Minibatches ``start`` to ``stop`` of a rank of the layout with which an epoch began.

    Attributes
    ----------
    rank, start, stop
        The rank, and the half-open range of its minibatches.
    portion, n_portions
        The portion of the minibatch that is made, and the number of portions. A run of portions has one minibatch, so
        that the cells of each dataset in a run are consecutive.
    """

    rank: int
    start: int
    stop: int
    portion: int = 0
    n_portions: int = 1

    def __len__(self) -> int:
        return self.stop - self.start


Runs = list[Run]


@dataclass(frozen=True)
class RunAssignment:
    """The runs of each worker: ``ranks[rank][worker]`` lists them in the order of reading."""

    ranks: list[list[Runs]]

    def n_minibatches(self, rank: int, batch_size: int) -> int:
        """Return the number of minibatches of a rank, of any size."""
        return sum(map(_count, self.ranks[rank]))

    def work(self, rank: int, worker: int) -> Runs:
        """Return the runs of a worker of a rank."""
        return self.ranks[rank][worker]


def assign_runs(
    n_minibatches: int, n_last: int, segments: Sequence[ResumeSegment], world_layout: WorldLayout
) -> RunAssignment:
    """Assign the rest of an epoch to ranks and workers.

    Parameters
    ----------
    n_minibatches, n_last
        Number of minibatches of each rank of the first layout, and of cells in the last of them.
    segments
        What was received so far; empty at the beginning of the epoch.
    world_layout
        Ranks and workers that make the rest.

    Examples
    --------
    The example of the module:

    >>> from cellfeed.plan.schedule import ShufflePlan
    >>> two, three = (WorldLayout(n, 1, ShufflePlan(1)) for n in (2, 3))
    >>> assign_runs(5, 64, [ResumeSegment(two, 2)], three).work(1, 0)
    [Run(rank=0, start=4, stop=5, portion=0, n_portions=1), Run(rank=1, start=2, stop=3, portion=0, n_portions=1)]
    """
    layouts = [*(segment.world_layout for segment in segments), world_layout]
    first = layouts[0]
    assigned = _divide([Run(rank, 0, n_minibatches) for rank in range(first.world_size)], first, n_minibatches, n_last)
    for segment, now in zip(segments, layouts[1:], strict=True):
        rest = [_skip(workers, _received(segment)) for workers in assigned.ranks]
        if now == segment.world_layout:
            assigned = RunAssignment(rest)
        else:
            assigned = _divide(_whole(rest), now, n_minibatches, n_last)
    return assigned


def _received(segment: ResumeSegment) -> int:
    """Return how many minibatches each rank received."""
    numbers = {segment.received_by(rank) for rank in range(segment.world_layout.world_size)}
    if len(numbers) > 1:
        raise StateError(
            f"the states count {sorted(numbers)} minibatches on different ranks; give states of a join that were saved "
            f"at the same step, or one of them"
        )
    return numbers.pop()


def _divide(runs: Runs, world_layout: WorldLayout, n_minibatches: int, n_last: int) -> RunAssignment:
    """Divide minibatches among ranks, and those of a rank among its workers."""
    world_size, num_workers = world_layout.world_size, world_layout.num_workers
    n_whole = _count(runs) // world_size
    of_all = _slice(runs, n_whole * world_size, _count(runs))
    if n_last < world_size:  # too few cells for each rank to have one
        of_all = [replace(run, stop=min(run.stop, n_minibatches - 1)) for run in of_all]
    ranks = []
    for rank in range(world_size):
        divided = [Run(run.rank, k, k + 1, rank, world_size) for run in of_all for k in range(run.start, run.stop)]
        own = _slice(runs, rank * n_whole, (rank + 1) * n_whole) + divided
        edges = [_count(own) * worker // num_workers for worker in range(num_workers + 1)]
        ranks.append([_slice(own, edges[worker], edges[worker + 1]) for worker in range(num_workers)])
    return RunAssignment(ranks)


def _whole(ranks: list[list[Runs]]) -> Runs:
    """Return what remains as whole minibatches: all ranks have a portion of one that is divided, or none has."""
    whole = [run for run in chain(*chain(*ranks)) if run.n_portions == 1]
    return whole + [replace(run, portion=0, n_portions=1) for run in chain(*ranks[0]) if run.n_portions > 1]


def _skip(workers: list[Runs], n_received: int) -> list[Runs]:
    """Return the rest of each worker of a rank after some minibatches, beginning with the worker whose turn it is."""
    return rest_in_turn(n_received, list(map(_count, workers)), lambda worker, n: _rest(workers[worker], n))


def _rest(runs: Runs, n: int) -> Runs:
    return _slice(runs, n, _count(runs))


def _slice(runs: Iterable[Run], low: int, high: int) -> Runs:
    """Return the minibatches from number ``low`` to ``high``."""
    taken, n_before = [], 0
    for run in runs:
        start, stop = (min(max(edge - n_before, 0), len(run)) + run.start for edge in (low, high))
        if start < stop:
            taken.append(replace(run, start=start, stop=stop))
        n_before += len(run)
    return taken


def _count(runs: Iterable[Run]) -> int:
    return sum(map(len, runs))
