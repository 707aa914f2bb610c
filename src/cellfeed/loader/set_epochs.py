"""The epochs of sets: their order, their division among ranks and their resume are those of cells in chunks of one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cellfeed.plan.layout import ResumeSegment, WorldLayout
from cellfeed.plan.resume import ShardAssignment, assign_shards
from cellfeed.plan.schedule import ShufflePlan
from cellfeed.plan.settings import Settings
from cellfeed.plan.state import SOURCE, Fingerprint
from cellfeed.plan.windows import Window

SETS_PER_WINDOW = 64
"""Sets that are ordered together: the cost of a window is small for each of them."""


@dataclass(frozen=True, eq=False)
class SetEpochs:
    """The epochs of sets: each set is a chunk, and the only medium is the memory.

    It has the methods of :class:`cellfeed.loader.media.Media`, of its media and of their planners.
    """

    settings: Settings
    n_sets: int
    fingerprint: Fingerprint
    name: str = SOURCE

    @property
    def planner(self) -> SetEpochs:
        """What orders the sets of an epoch."""
        return self

    def get(self, name: str) -> SetEpochs:
        """Return the only medium."""
        return self

    def choose(self, epoch: int, rank: int, world_size: int) -> SetEpochs:
        """Return the only medium."""
        return self

    def shuffle_plan(self, num_workers: int = 1) -> ShufflePlan:
        """Return windows of some sets: their number has no effect on mixing, since the order is random already."""
        return ShufflePlan(SETS_PER_WINDOW)

    def assign(self, epoch: int, segments: Sequence[ResumeSegment], world_layout: WorldLayout) -> ShardAssignment:
        """Assign the sets of the rest of an epoch to ranks."""
        order = self.settings.epoch_order(epoch, np.arange(self.n_sets + 1), world_layout.mixing)
        return assign_shards(order, segments, world_layout)


def set_numbers(windows: Iterable[Window]) -> Iterator[tuple[int, bool]]:
    """Yield the number of each set of some windows, and whether it is no repetition."""
    for window in windows:
        order = window.order[window.n_skipped :]
        numbers, is_real = (
            np.concatenate([getattr(fetch, name) for fetch in window.fetches])[order].tolist()
            for name in ("positions", "is_real")
        )
        yield from zip(numbers, is_real, strict=True)
