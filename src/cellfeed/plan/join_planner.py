"""Plans the epochs of a join: the minibatches of each rank and worker, and the windows of the cells in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from cellfeed.errors import PlanError
from cellfeed.plan.epoch import World
from cellfeed.plan.join_runs import RunAssignment, assign_runs
from cellfeed.plan.join_schedule import JoinSchedule
from cellfeed.plan.layout import ResumeSegment, WorldLayout, first_layout
from cellfeed.plan.planner import Planner
from cellfeed.plan.resume import Shard
from cellfeed.plan.schedule import ShufflePlan
from cellfeed.plan.settings import Settings
from cellfeed.plan.windows import Window


class JoinPlanner:
    """Plans the epochs of a join.

    Parameters
    ----------
    planners
        The planners of the datasets by name.
    settings
        Those of the join.
    shares
        The shares of the datasets, as integers in proportion to them; ``None`` for their numbers of cells.
    length
        The length of an epoch; see :class:`~cellfeed.plan.join_schedule.JoinSchedule`.
    """

    def __init__(
        self, planners: Mapping[str, Planner], settings: Settings, shares: Sequence[int] | None, length: str | int
    ) -> None:
        self._planners, self._settings, self.shares, self.length = planners, settings, shares, length
        self._schedules: dict[int, JoinSchedule] = {}

    def shuffle_plan(self, num_workers: int = 1) -> ShufflePlan:
        """Return a plan without meaning: each dataset mixes its chunks by its own."""
        return ShufflePlan(1)

    def schedule(self, world_size: int) -> JoinSchedule:
        """Return the minibatches that each of ``world_size`` ranks receives in an epoch."""
        if world_size not in self._schedules:
            sizes = tuple(self._n_cells(name, world_size) for name in self._planners)
            weights = sizes if self.shares is None else tuple(self.shares)
            settings = self._settings
            made = JoinSchedule(weights, sizes, settings.batch_size, self.length, settings.drop_last)
            self._schedules[world_size] = made
        return self._schedules[world_size]

    def _n_cells(self, name: str, world_size: int) -> int:
        """Return the number of cells of each rank in an epoch of a dataset."""
        order = self._planners[name].epoch_order(0)
        start, stop = order.shard(World(0, world_size))
        if stop == start:
            raise PlanError(
                f"{name!r} has {order.n_cells} cells, fewer than world_size={world_size} ranks; join more of its cells"
            )
        return stop - start

    def assign(self, epoch: int, segments: Sequence[ResumeSegment], world_layout: WorldLayout) -> RunAssignment:
        """Assign the rest of an epoch, of which segments were received, to ranks and workers."""
        schedule = self.schedule(first_layout(segments, world_layout).world_size)
        n_last = schedule.size(len(schedule) - 1) if len(schedule) else 0
        return assign_runs(len(schedule), n_last, segments, world_layout)


def windows_of_cells(
    planner: Planner, world_layout: WorldLayout, rank: int, cells: range, size: int
) -> Iterator[Window]:
    """Yield windows with the cells of a rank, numbered through all epochs of a dataset, which has ``size`` in each.

    ``world_layout`` is that with which the epoch of the join began. The last window may have more cells.
    """
    mixing = planner.shuffle_plan(world_layout.num_workers)
    own_epoch, n_done = divmod(cells.start, size)
    n_left = len(cells)
    while n_left > 0:
        order = planner.epoch_order(own_epoch, mixing)
        shard = Shard(*order.shard(World(rank, world_layout.world_size)), n_done)
        for window in shard.windows(order):
            yield window
            n_left -= len(window.order) - window.n_skipped
            if n_left <= 0:
                return
        own_epoch, n_done = own_epoch + 1, 0
