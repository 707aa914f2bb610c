"""Reads the cells of one dataset of a join: of its source, of its local copy, or of one after the other."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cellfeed._joinids import IntArray
from cellfeed.loader.engine import Engine
from cellfeed.loader.epochs import RankEpoch
from cellfeed.loader.media import Medium
from cellfeed.loader.reading import Reading
from cellfeed.loader.world import available_threads
from cellfeed.plan.join_planner import windows_of_cells
from cellfeed.plan.join_runs import Run
from cellfeed.plan.join_schedule import JoinSchedule
from cellfeed.plan.layout import first_layout
from cellfeed.rows.cell_rows import CellRows
from cellfeed.rows.columns import Columns
from cellfeed.rows.row_allocator import Reader
from cellfeed.stats import Meter


@dataclass(frozen=True)
class Sizes:
    """Numbers of cells of a dataset in each minibatch of a run; iterated once for each matrix.

    Attributes
    ----------
    schedule, dataset, epoch, run
        The minibatches.
    cells
        Those cells that are counted, numbered through all epochs of the dataset.
    """

    schedule: JoinSchedule
    dataset: int
    epoch: int
    run: Run
    cells: range

    def __iter__(self) -> Iterator[int]:
        for step in range(self.run.start, self.run.stop):
            start, stop = self.schedule.bounds(self.dataset, self.epoch, self.run, step)
            n_cells = min(stop, self.cells.stop) - max(start, self.cells.start)
            if n_cells > 0:
                yield n_cells


@dataclass(frozen=True, eq=False)
class RunCells:
    """The cells of one dataset in a run.

    Attributes
    ----------
    first_position
        Position of its first cell in the selection of the join.
    readings
        Read the cells, one after another; several if the dataset is read from several media.
    orders
        For each of them, the positions of its cells in the selection of the dataset; ``None`` if they are the same.
    """

    first_position: int
    readings: Sequence[Reading]
    orders: Sequence[IntArray | None]

    def rows(self) -> Generator[list[CellRows], None, None]:
        """Yield the rows of X, and of each further matrix, with positions in the join."""
        for reading, order in zip(self.readings, self.orders, strict=True):
            with reading.reading() as batches:
                for matrices in batches:
                    own = matrices[0].positions
                    positions = (own if order is None else order[own]) + self.first_position
                    yield [replace(rows, positions=positions) for rows in matrices]
                    del matrices  # they keep whole slabs in memory


@dataclass(frozen=True, eq=False)
class DatasetReader:
    """Reads the cells of one dataset in an epoch of a join.

    Attributes
    ----------
    dataset, engine
        The number of the dataset in the join, and its engine.
    columns, value_dtypes, meter, monitored
        As for :class:`~cellfeed.loader.reading.Reading`.
    first_position
        As for :class:`RunCells`.
    begun, later
        What it is read from: its epoch that is under way when the epoch of the join begins, and those after it.
    schedule, this
        Which cells are in each minibatch, and the epoch of the join.
    """

    dataset: int
    engine: Engine
    columns: Columns
    value_dtypes: Sequence[np.dtype[Any]]
    first_position: int
    begun: Medium
    later: Medium
    schedule: JoinSchedule
    this: RankEpoch
    meter: Meter
    monitored: Callable[[Reader], Reader] | None

    def cells(self, run: Run) -> RunCells:
        """Return the cells of a run, which is not empty."""
        start, _ = self.schedule.bounds(self.dataset, self.this.epoch, run, run.start)
        _, stop = self.schedule.bounds(self.dataset, self.this.epoch, run, run.stop - 1)
        own_epoch, _ = self.schedule.position(self.dataset, self.this.epoch)
        change = (own_epoch + 1) * self.schedule.sizes[self.dataset]  # the first cell of the later medium
        pieces = [(self.begun, range(start, min(stop, change))), (self.later, range(max(start, change), stop))]
        if self.begun.name == self.later.name:
            pieces = [(self.later, range(start, stop))]
        read = [(medium, cells) for medium, cells in pieces if len(cells)]
        readings = [self._reading(medium, cells, run) for medium, cells in read]
        return RunCells(self.first_position, readings, [medium.order for medium, _ in read])

    def _reading(self, medium: Medium, cells: range, run: Run) -> Reading:
        size, first = self.schedule.sizes[self.dataset], first_layout(self.this.segments, self.this.world_layout)
        return Reading(
            medium.selection,
            self.engine.settings,
            medium.planner.resources(self.this.world_layout.num_workers, available_threads()),
            windows_of_cells(medium.planner, first, run.rank, cells, size),
            self.meter,
            sizes=Sizes(self.schedule, self.dataset, self.this.epoch, run, cells),
            monitored=self.monitored,
            appender=self.engine.media.appender(medium),
            columns=self.columns,
            value_dtypes=self.value_dtypes,
        )
