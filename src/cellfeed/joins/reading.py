"""Reads the rows of the minibatches of a join: those of all datasets, with the columns of the join."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from cellfeed.joins.dataset_reader import RunCells
from cellfeed.plan.budget import MINIBATCHES_HELD
from cellfeed.plan.join_runs import Run
from cellfeed.plan.join_schedule import JoinSchedule
from cellfeed.rows.assemble import DenseBuffers
from cellfeed.rows.cell_rows import CellRows
from cellfeed.rows.columns import Columns
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
    value_dtypes
        For each matrix, the type of values that are wide, in all datasets.
    n_threads
        Number of threads that renumber columns.
    """

    schedule: JoinSchedule
    epoch: int
    runs: Sequence[tuple[Run, Sequence[RunCells]]]
    value_dtypes: Sequence[np.dtype[Any]]
    n_threads: int

    def retries(self) -> list[Retries]:
        """Return what makes the requests of all datasets; the caller closes them after the epoch."""
        return [each for own in self._retries for each in own]

    @cached_property
    def _retries(self) -> list[list[Retries]]:
        return [reading.retries() for _, parts in self.runs for part in parts for reading in part.readings]

    @contextlib.contextmanager
    def reading(self, retries: Sequence[Retries]) -> Iterator[Iterator[list[CellRows]]]:
        """Yield an iterator over minibatches: their rows of X, and of each further matrix, of the same cells."""
        with contextlib.ExitStack() as stack:
            threads = stack.enter_context(ThreadPoolExecutor(self.n_threads, thread_name_prefix="cellfeed-columns"))
            yield stack.enter_context(contextlib.closing(self._minibatches(threads)))

    def _minibatches(self, threads: Executor) -> Generator[list[CellRows], None, None]:
        buffers = DenseBuffers(keep=MINIBATCHES_HELD * len(self.runs[0][1]) if self.runs else 0)
        own = iter(self._retries)
        for run, parts in self.runs:
            requests = [iter([next(own) for _ in part.readings]) for part in parts]
            with contextlib.ExitStack() as stack:
                streams = [
                    stack.enter_context(contextlib.closing(part.rows(each)))
                    for part, each in zip(parts, requests, strict=True)
                ]
                for step in range(run.start, run.stop):
                    pieces = []
                    for k, (part, stream) in enumerate(zip(parts, streams, strict=True)):
                        start, stop = self.schedule.bounds(k, self.epoch, run, step)
                        for matrices in _next_cells(stream, stop - start):
                            pieces.append(self._renumbered(part.columns, matrices, buffers, threads))
                    yield [CellRows.join(rows) for rows in zip(*pieces, strict=True)]
                    del pieces, matrices  # they keep whole slabs in memory
                for stream in streams:  # its end completes a local copy
                    next(stream, None)

    def _renumbered(
        self, columns: Columns, matrices: Sequence[CellRows], buffers: DenseBuffers, threads: Executor
    ) -> list[CellRows]:
        """Return rows with the columns of the join."""
        return [
            columns.of(rows, dtype, buffers, threads) for rows, dtype in zip(matrices, self.value_dtypes, strict=True)
        ]


def _next_cells(stream: Iterator[list[CellRows]], n_cells: int) -> Iterator[list[CellRows]]:
    """Yield the next rows of a stream, until there are ``n_cells``: more than one piece where its medium changes."""
    while n_cells > 0:
        matrices = next(stream)
        n_cells -= len(matrices[0])
        yield matrices
        del matrices
