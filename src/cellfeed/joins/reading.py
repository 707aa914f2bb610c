"""Reads the rows of the minibatches of a join: those of all datasets, with the columns of the join."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

from cellfeed.joins.dataset_reader import RunCells
from cellfeed.plan.join_runs import Run
from cellfeed.plan.join_schedule import JoinSchedule
from cellfeed.rows.cell_rows import CellRows
from cellfeed.sources.retry import Retries


@dataclass(frozen=True, eq=False)
class JoinReading:
    """Reads the rows of minibatches in one process.

    Attributes
    ----------
    schedule, epoch
        Which cells are in each minibatch.
    runs
        The minibatches, and the cells of each dataset in them.
    """

    schedule: JoinSchedule
    epoch: int
    runs: Sequence[tuple[Run, Sequence[RunCells]]]

    @property
    def retries(self) -> list[Retries]:
        """What makes the requests of all datasets; the caller closes them after the epoch."""
        return [
            each for _, parts in self.runs for part in parts for reading in part.readings for each in reading.retries
        ]

    @contextlib.contextmanager
    def reading(self) -> Iterator[Iterator[list[CellRows]]]:
        """Yield an iterator over minibatches: their rows of X, and of each further matrix, of the same cells."""
        with contextlib.closing(self._minibatches()) as minibatches:
            yield minibatches

    def _minibatches(self) -> Generator[list[CellRows], None, None]:
        for run, parts in self.runs:
            with contextlib.ExitStack() as stack:
                streams = [stack.enter_context(contextlib.closing(part.rows())) for part in parts]
                for step in range(run.start, run.stop):
                    pieces: list[list[CellRows]] = []
                    for k, stream in enumerate(streams):
                        start, stop = self.schedule.bounds(k, self.epoch, run, step)
                        pieces += _next_cells(stream, stop - start)
                    yield [CellRows.join(rows) for rows in zip(*pieces, strict=True)]
                    del pieces  # they keep whole slabs in memory
                for stream in streams:  # its end completes a local copy
                    next(stream, None)


def _next_cells(stream: Iterator[list[CellRows]], n_cells: int) -> Iterator[list[CellRows]]:
    """Yield the next rows of a stream, until there are ``n_cells``: more than one piece where its medium changes."""
    while n_cells > 0:
        matrices = next(stream)
        n_cells -= len(matrices[0])
        yield matrices
        del matrices
