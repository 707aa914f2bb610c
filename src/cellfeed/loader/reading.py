"""The rows of the minibatches of one epoch: windows are read ahead, verified, and divided into batches."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np

from cellfeed._joinids import IntArray, read_bounds
from cellfeed.loader.feed import load_windows, rebatch
from cellfeed.plan import budget
from cellfeed.plan.planner import Resources
from cellfeed.plan.settings import Settings
from cellfeed.plan.windows import Window
from cellfeed.rows.assemble import DenseBuffers
from cellfeed.rows.cell_rows import CellRows
from cellfeed.rows.columns import Columns
from cellfeed.rows.half_precision import HALF_DTYPES, round_to_half
from cellfeed.rows.row_allocator import Reader, RowAllocator, RowPointers
from cellfeed.rows.slabs import choose_slab_bytes
from cellfeed.select.selection import Selection
from cellfeed.sources.retry import Retries
from cellfeed.sources.verify import check_rows
from cellfeed.stats import Meter


class Appender(Protocol):
    """Appends the rows of an epoch to a local copy."""

    def append(self, rows: CellRows) -> None:
        """Append the rows of cells that the copy lacks."""

    def finish(self) -> None:
        """Complete the part that was written, at the end of the epoch."""

    def abandon(self) -> None:
        """Close the part that was written; a later epoch continues it."""


class ReadsRows(Protocol):
    """Reads the rows of minibatches: a :class:`Reading`, or several of them for the datasets of a join."""

    @property
    def retries(self) -> Sequence[Retries]:
        """What makes the requests; the caller closes them after the epoch."""

    def reading(self) -> contextlib.AbstractContextManager[Iterator[list[CellRows]]]:
        """Yield an iterator over minibatches: their rows of X, and of each further matrix, of the same cells."""


@dataclass(frozen=True, eq=False)
class Reading:
    """Reads the rows of minibatches in one process.

    Attributes
    ----------
    selection, settings, resources
        What to read, how to batch it, and with how many threads and bytes.
    windows
        The windows of the cells.
    meter
        The counters.
    sizes
        Numbers of cells of the minibatches, if they are not all ``batch_size``; iterated once for each matrix.
    monitored
        Wraps the reader, in a worker process.
    appender
        Appends the rows of X to a local copy.
    columns
        The columns of the genes of X and of layers; ``None`` if these are the genes in their order.
    value_dtypes
        For each matrix, the type of values that are wide; ``None`` if it is that of the rows. Datasets of a join have
        common ones.
    """

    selection: Selection
    settings: Settings
    resources: Resources
    windows: Iterable[Window]
    meter: Meter
    sizes: Iterable[int] | None = None
    monitored: Callable[[Reader], Reader] | None = None
    appender: Appender | None = None
    columns: Columns | None = None
    value_dtypes: Sequence[np.dtype[Any]] | None = None

    @cached_property
    def _matrices(self) -> list[Reading]:
        """A reading per matrix of minibatches, X first: further ones read the same windows from other arrays."""
        further = [
            replace(self, selection=replace(selection, nnz=None), resources=resources, monitored=None)  # nnz is of X
            for selection, resources in zip(self.selection.further, self.resources.further, strict=True)
        ]
        return [self, *further]

    @cached_property
    def retries(self) -> list[Retries]:
        """What makes the requests of each matrix; the caller closes them after the epoch."""
        return [
            each.selection.source.retries(n_threads=each.resources.n_requests, meter=self.meter)
            for each in self._matrices
        ]

    @contextlib.contextmanager
    def reading(self) -> Iterator[Iterator[list[CellRows]]]:
        """Yield an iterator over minibatches: their rows of X, and of each further matrix, of the same cells.

        A layer that is X itself has the rows of X. The iterator holds no reference to what it has returned.
        """
        is_read = [each is self or each.selection.source is not self.selection.source for each in self._matrices]
        with contextlib.ExitStack() as stack:
            batches = [
                stack.enter_context(contextlib.closing(each._batches(own, requests)))
                for each, own, requests in zip(
                    itertools.compress(self._matrices, is_read),
                    itertools.tee(self.windows, sum(is_read)),
                    itertools.compress(self.retries, is_read),
                    strict=True,
                )
            ]
            ended: list[Any] = []
            copy = stack.enter_context(self._copying())
            renumber = stack.enter_context(self._renumbering())

            def next_rows() -> list[Any]:
                X, *further = (next(each, None) for each in batches)
                if X is None:
                    return ended
                copy(X)
                own: Iterator[Any] = iter(further)
                return renumber([X, *(next(own) if is_own else X for is_own in is_read[1:])])

            yield iter(next_rows, ended)

    def rows(self) -> Generator[list[CellRows], None, None]:
        """Yield the rows of minibatches as :meth:`reading` does, and close the requests."""
        with contextlib.ExitStack() as stack:
            for each in self.retries:
                stack.enter_context(contextlib.closing(each))
            yield from stack.enter_context(self.reading())

    def _batches(self, windows: Iterable[Window], retries: Retries) -> Generator[CellRows, None, None]:
        """Yield the cells of each minibatch with their rows; closing the generator closes the reader."""
        selection, settings, resources = self.selection, self.settings, self.resources
        reader, rows_per_read, n_threads = selection.source.open_reader(
            selection, resources, verify=settings.verify, meter=self.meter, retries=retries
        )
        if self.monitored:
            reader = self.monitored(reader)
        loaded = load_windows(
            windows,
            selection.joinids,
            partial(self._read_rows, reader),
            read_bounds=partial(
                read_bounds,
                extent=selection.geometry.row_extent,
                max_row_blocks=budget.MAX_ROW_BLOCKS_PER_READ,
                max_rows=rows_per_read,
            ),
            n_threads=n_threads,
            ahead=resources.windows_ahead,
            slab_bytes=choose_slab_bytes(resources.pool_bytes, resources.n_windows),
            meter=self.meter,
        )
        batches = rebatch(loaded, itertools.repeat(settings.batch_size) if self.sizes is None else self.sizes)
        with contextlib.closing(reader), contextlib.closing(loaded), contextlib.closing(batches):
            yield from batches

    @contextlib.contextmanager
    def _renumbering(self) -> Iterator[Callable[[list[CellRows]], list[CellRows]]]:
        """Yield a function that gives the rows of each matrix their columns."""
        columns = self.columns
        if columns is None:
            yield lambda matrices: matrices
            return
        genes = self.selection.var_joinids
        has_columns = [each.selection.var_joinids is genes for each in self._matrices]  # but further measurements
        buffers = DenseBuffers(keep=len(has_columns) * (budget.MINIBATCHES_HELD + 1))
        with ThreadPoolExecutor(self.resources.n_threads, thread_name_prefix="cellfeed-columns") as threads:

            def renumber(matrices: list[CellRows]) -> list[CellRows]:
                dtypes = self.value_dtypes or [rows.value_dtype for rows in matrices]
                return [
                    columns.of(rows, dtype, buffers, threads) if has else rows
                    for rows, dtype, has in zip(matrices, dtypes, has_columns, strict=True)
                ]

            yield renumber

    @contextlib.contextmanager
    def _copying(self) -> Iterator[Callable[[CellRows], None]]:
        """Yield a function that appends rows to the local copy, if this epoch writes one."""
        if self.appender is None:
            yield lambda rows: None
            return
        try:
            yield self.appender.append
        except BaseException:
            self.appender.abandon()
            raise
        self.appender.finish()

    def _read_rows(
        self, reader: Reader, positions: IntArray, joinids: IntArray, allocator: RowAllocator
    ) -> RowPointers:
        """Read rows, verify them, and round their values if X has a 16-bit float type."""
        half = HALF_DTYPES.get(self.settings.X_dtype)
        rows = reader.read(joinids, allocator if half is None else allocator.with_value_bytes(2))
        if self.settings.verify:
            check_rows(rows, positions, joinids, self.selection)
        return rows if half is None else round_to_half(rows, joinids, half)


def columns_of(selection: Selection) -> Columns | None:
    """Return the columns of the genes of a selection; ``None`` if these are its genes in their order."""
    return None if selection.column_transform is None else Columns.from_genes(selection.column_transform.source)
