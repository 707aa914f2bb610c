"""From pages of (row, column, value) triples, as TileDB returns them, to rows of the selected genes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cellfeed._joinids import IntArray, find_in, runs_of
from cellfeed.errors import ReadError
from cellfeed.rows.cell_rows import ValueWidth
from cellfeed.rows.row_allocator import RowAllocator, RowPointers

MAX_TABLE_SIZE = 1 << 26
"""Columns between the first and the last selected gene for which a table is made."""


class GenePlaces(NamedTuple):
    """Places of columns among the selected genes, as an argument of kernels.

    Attributes
    ----------
    table
        uint32: place of column ``base + i``, ``0xFFFFFFFF`` if the column is not selected. Empty if all columns are
        selected.
    base
        The first column in the table.
    is_range
        Whether the place of each column in the table is its index.
    """

    table: npt.NDArray[np.uint32]
    base: int
    is_range: bool = False


class RowRuns(NamedTuple):
    """Runs of consecutive wanted rows, as an argument of kernels; int64, shape (n_runs,) each.

    Attributes
    ----------
    first, stop
        First row number of each run, and the row number after its last.
    row
        Index of each run's first row among the wanted rows.
    """

    first: IntArray
    stop: IntArray
    row: IntArray

    @classmethod
    def from_runs(cls, runs: IntArray) -> RowRuns:
        """Return the runs of half-open ranges, int64, shape (n_runs, 2), ascending.

        >>> RowRuns.from_runs(np.array([[3, 5], [9, 12]]))
        RowRuns(first=array([3, 9]), stop=array([ 5, 12]), row=array([0, 2]))
        """
        lengths = runs[:, 1] - runs[:, 0]
        return cls(np.ascontiguousarray(runs[:, 0]), np.ascontiguousarray(runs[:, 1]), row=np.cumsum(lengths) - lengths)


class Page(NamedTuple):
    """A page in compact types, as an argument of kernels.

    Attributes
    ----------
    genes, values
        shape (n,): places and values of the selected genes.
    rows, sizes
        int32, shape (n_segments,): segments, see :mod:`cellfeed.rows.page_kernels`.
    """

    genes: npt.NDArray[Any]
    values: npt.NDArray[Any]
    rows: npt.NDArray[np.int32]
    sizes: npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class GeneTable:
    """Place of each column of the array among the selected genes.

    Attributes
    ----------
    n_vars
        Number of selected genes.
    n_columns
        Number of columns of the array.
    places
        The place of each column.
    joinids
        int64, shape (n_vars,): ascending joinids of the selected genes if they span too many columns for a table;
        then :meth:`columns` numbers the columns by them.
    """

    n_vars: int
    n_columns: int
    places: GenePlaces
    joinids: IntArray | None = None

    @classmethod
    def from_joinids(cls, var_joinids: IntArray, n_columns: int) -> GeneTable:
        """Return the table for ascending ``var_joinids`` of an array of ``n_columns`` columns."""
        n_vars = len(var_joinids)
        if n_vars == n_columns:  # joinids are distinct and within the array: all columns are selected
            return cls(n_vars, n_columns, GenePlaces(np.empty(0, np.uint32), 0))
        base = int(var_joinids[0]) if n_vars else 0
        span = int(var_joinids[-1]) - base + 1 if n_vars else 1
        if span > MAX_TABLE_SIZE:
            return cls(n_vars, n_columns, GenePlaces(np.arange(n_vars, dtype=np.uint32), 0), var_joinids)
        table = np.full(span, 0xFFFFFFFF, np.uint32)
        table[var_joinids - base] = np.arange(n_vars, dtype=np.uint32)
        return cls(n_vars, n_columns, GenePlaces(table, base, span == n_vars))

    @property
    def keeps_all(self) -> bool:
        """Whether all columns of the array are selected."""
        return len(self.places.table) == 0

    @property
    def dtype(self) -> type[np.unsignedinteger[Any]]:
        """The smallest type that represents all places."""
        return np.uint16 if self.n_vars <= 1 << 16 else np.uint32

    def columns(self, dim1: IntArray) -> IntArray:
        """Return columns of the array as columns of the table, -1 for a column that is not selected."""
        if self.joinids is None:
            return dim1
        return find_in(self.joinids, dim1)


class RowBuilder:
    """Builds rows from pages of (row, column, value) triples.

    :meth:`add` converts a page to compact types, so that its 20 bytes per value can be freed, and counts the values of
    each row. :meth:`finish` then copies each segment to its row. Rows are sorted only if the genes of a row do not
    ascend over the pages; in an array of one fragment they do.
    """

    def __init__(self, joinids: IntArray, genes: GeneTable, value_dtype: npt.DTypeLike) -> None:
        self._joinids = joinids
        self._genes = genes
        self._value_dtypes: dict[ValueWidth, np.dtype[Any]] = {
            ValueWidth.UINT8: np.dtype(np.uint8),
            ValueWidth.UINT16: np.dtype(np.uint16),
            ValueWidth.WIDE: np.dtype(value_dtype),
        }
        self._runs = RowRuns.from_runs(runs_of(joinids))
        self._sizes = np.zeros(len(joinids), np.int64)
        self._pages: list[Page] = []
        self._width = ValueWidth.UINT8

    def add(self, dim0: IntArray, dim1: IntArray, data: npt.NDArray[Any]) -> None:
        """Add a page: row numbers, columns and values, shape (n,) each. The arrays are not kept."""
        from cellfeed.rows import page_kernels

        if len(dim0) == 0 or len(self._joinids) == 0:
            return
        if dim1.min() < 0 or dim1.max() >= self._genes.n_columns:
            raise ReadError(
                f"X holds a value in column {dim1.min() if dim1.min() < 0 else dim1.max()} near soma_joinid {dim0[0]}, "
                f"outside its {self._genes.n_columns} columns: the store is damaged"
            )
        rows, sizes, n_unwanted = self._find_segments(dim0)
        width, values = self._narrow(data)
        self._width = max(self._width, width)
        genes = np.empty(len(dim0), self._genes.dtype)
        n_kept = len(dim0)
        if not self._genes.keeps_all:  # values are compacted in place
            columns = self._genes.columns(dim1)
            n_kept = page_kernels.keep_genes(columns, values, rows, sizes, self._genes.places, genes, values)
        elif n_unwanted:
            n_kept = page_kernels.keep_rows(dim1, genes, rows, sizes)
            page_kernels.keep_rows(values, values, rows, sizes)
        else:
            genes[:] = dim1
        page_kernels.add_sizes(rows, sizes, self._sizes)
        if n_kept < len(genes) // 2:  # a copy frees the memory of the values that were dropped
            genes, values = genes[:n_kept].copy(), values[:n_kept].copy()
        self._pages.append(Page(genes[:n_kept], values[:n_kept], rows, sizes))

    def _find_segments(self, dim0: IntArray) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], int]:
        """Return the rows and sizes of a page's segments, and the number of segments that are not wanted."""
        from cellfeed.rows import page_kernels

        rows: list[npt.NDArray[np.int32]] = []
        sizes: list[npt.NDArray[np.int32]] = []
        start = n_unwanted = 0
        while start < len(dim0):
            capacity = (len(dim0) - start) // 32 + 64  # an estimate; the loop continues if there are more segments
            row, size = np.empty(capacity, np.int32), np.empty(capacity, np.int32)
            start, n_segments, n_others = page_kernels.find_segments(dim0, start, self._runs, row, size)
            rows.append(row[:n_segments])
            sizes.append(size[:n_segments])
            n_unwanted += n_others
        return np.concatenate(rows), np.concatenate(sizes), n_unwanted

    def _narrow(self, data: npt.NDArray[Any]) -> tuple[ValueWidth, npt.NDArray[Any]]:
        """Copy the values of a page to the narrowest type that represents them; counts are stored as uint16."""
        from cellfeed.rows import page_kernels

        if data.dtype == np.float32:
            values: npt.NDArray[Any] = np.empty(len(data), np.uint16)
            width = ValueWidth(page_kernels.narrow_float32(data, data.view(np.int32), values))
        else:
            width = ValueWidth(page_kernels.value_width(data))
            values = data.astype(np.uint16) if width < ValueWidth.WIDE else data
        wide = self._value_dtypes[ValueWidth.WIDE]
        if width < ValueWidth.WIDE and self._value_dtypes[width].itemsize <= wide.itemsize:
            return width, values
        return ValueWidth.WIDE, data.astype(wide)

    def finish(self, allocator: RowAllocator) -> RowPointers:
        """Return the rows in memory of an allocator; the builder is empty afterwards."""
        from cellfeed.rows import page_kernels

        rows = allocator.allocate(self._sizes, self._genes.dtype, self._value_dtypes[self._width])
        arrays, disorder = rows.unfilled, False
        for page in self._pages:
            disorder |= page_kernels.scatter_page(page, arrays)
        self._pages.clear()
        return rows.sorted(self._joinids) if disorder else rows
