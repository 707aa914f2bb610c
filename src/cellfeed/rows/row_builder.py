"""From pages of triples, as a store gives them, to rows of the selected genes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cellfeed._joinids import IntArray, runs_of
from cellfeed.errors import ReadError
from cellfeed.rows.row_allocator import RowAllocator, RowPointers


@dataclass(frozen=True, eq=False)
class GeneTable:
    """Where each column of the array goes among the selected genes.

    Attributes
    ----------
    n_vars
        Selected genes.
    n_columns
        Columns of the array.
    base, table
        Column ``base + i`` of the array is selected gene ``table[i]``; ``0xFFFFFFFF`` where it is not
        wanted. An empty table means that columns are places already.
    joinids
        Ascending; set only where they lie too far apart for a table.
    """

    n_vars: int
    n_columns: int
    base: int
    table: npt.NDArray[np.uint32]
    joinids: IntArray | None = None

    @classmethod
    def from_joinids(cls, var_joinids: IntArray, n_columns: int) -> GeneTable:
        """Make the table for ascending ``var_joinids`` of an array of ``n_columns`` columns."""
        n_vars = len(var_joinids)
        nothing = np.empty(0, np.uint32)
        if n_vars == n_columns:  # distinct and within the array, so all of it
            return cls(n_vars, n_columns, 0, nothing)
        base = int(var_joinids[0]) if n_vars else 0
        span = int(var_joinids[-1]) - base + 1 if n_vars else 1
        if span > 1 << 26:
            return cls(n_vars, n_columns, 0, np.arange(n_vars, dtype=np.uint32), var_joinids)
        table = np.full(span, 0xFFFFFFFF, np.uint32)
        table[var_joinids - base] = np.arange(n_vars, dtype=np.uint32)
        return cls(n_vars, n_columns, base, table)

    @property
    def keeps_all(self) -> bool:
        """Whether every column of the array is wanted."""
        return len(self.table) == 0

    @property
    def dtype(self) -> type[np.unsignedinteger[Any]]:
        """The smallest type that holds a place."""
        return np.uint16 if self.n_vars <= 1 << 16 else np.uint32

    def columns(self, dim1: IntArray) -> IntArray:
        """Bring columns of the array into the range of the table."""
        if self.joinids is None:
            return dim1
        place = np.searchsorted(self.joinids, dim1)
        place[place == len(self.joinids)] = 0
        return np.where(self.joinids[place] == dim1, place, -1)


class RowBuilder:
    """Turn pages of (row, column, value) triples, as a store gives them, into rows.

    A page is staged at once in compact types, so that its 20 bytes a value can go; counting happens on
    the way. :meth:`finish` then moves whole stretches of a row at a time. No sort is needed where each row's
    genes ascend over the pages, as in a single fragment; where they do not, rows are sorted.
    """

    def __init__(self, joinids: IntArray, genes: GeneTable, value_dtype: npt.DTypeLike) -> None:
        self._joinids = joinids
        self._genes = genes
        self._value_dtypes = (np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(value_dtype))
        runs = runs_of(joinids)
        self._first, self._stop = np.ascontiguousarray(runs[:, 0]), np.ascontiguousarray(runs[:, 1])
        self._row0 = np.cumsum(self._stop - self._first) - (self._stop - self._first)
        self._sizes = np.zeros(len(joinids), np.int64)
        self._pages: list[tuple[npt.NDArray[Any], ...]] = []
        self._width = 0

    def add(self, dim0: IntArray, dim1: IntArray, data: npt.NDArray[Any]) -> None:
        """Take one page. Nothing of it is kept by reference."""
        from cellfeed.rows import kernels, page_kernels

        if len(dim0) == 0 or len(self._joinids) == 0:
            return
        if dim1.min() < 0 or dim1.max() >= self._genes.n_columns:
            raise ReadError(
                f"X holds a value in column {dim1.min() if dim1.min() < 0 else dim1.max()} near soma_joinid {dim0[0]}, "
                f"outside its {self._genes.n_columns} columns: the store is damaged"
            )
        run_row, run_size, n_unwanted = self._rows(dim0)
        width, values = self._narrow(data)
        self._width = max(self._width, width)
        genes = np.empty(len(dim0), self._genes.dtype)
        n_kept = len(dim0)
        if not self._genes.keeps_all:
            columns, table, base = self._genes.columns(dim1), self._genes.table, self._genes.base
            n_kept = page_kernels.keep_genes(columns, values, run_row, run_size, table, base, genes, values)
        elif n_unwanted:
            n_kept = page_kernels.keep_rows(dim1, genes, run_row, run_size)
            page_kernels.keep_rows(values, values, run_row, run_size)
        else:
            kernels.copy_into(dim1, genes)
        page_kernels.add_sizes(run_row, run_size, self._sizes)
        if n_kept < len(genes) // 2:  # a copy is worth the memory of what was not wanted
            genes, values = genes[:n_kept].copy(), values[:n_kept].copy()
        self._pages.append((genes[:n_kept], values[:n_kept], run_row, run_size))

    def _rows(self, dim0: IntArray) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], int]:
        """Cut a page into stretches of one row: their rows, their sizes, and how many are unwanted."""
        from cellfeed.rows import page_kernels

        rows: list[npt.NDArray[np.int32]] = []
        sizes: list[npt.NDArray[np.int32]] = []
        at = n_unwanted = 0
        while at < len(dim0):
            room = (len(dim0) - at) // 32 + 64  # a guess at the number of stretches; what is left gets another
            row, size = np.empty(room, np.int32), np.empty(room, np.int32)
            at, n_runs, unwanted = page_kernels.find_rows(dim0, at, self._first, self._stop, self._row0, row, size)
            rows.append(row[:n_runs])
            sizes.append(size[:n_runs])
            n_unwanted += unwanted
        return np.concatenate(rows), np.concatenate(sizes), n_unwanted

    def _narrow(self, data: npt.NDArray[Any]) -> tuple[int, npt.NDArray[Any]]:
        """Copy the values of a page to a small type that holds them; the width is 0, 1 or 2, as for the rows."""
        from cellfeed.rows import page_kernels

        if data.dtype == np.float32:
            values: npt.NDArray[Any] = np.empty(len(data), np.uint16)
            width = int(page_kernels.narrow_float32(data, data.view(np.int32), values))
        else:
            width = int(page_kernels.value_width(data))
            values = data.astype(np.uint16) if width < 2 else data
        if width < 2 and self._value_dtypes[width].itemsize <= self._value_dtypes[2].itemsize:
            return width, values
        return 2, data.astype(self._value_dtypes[2])

    def finish(self, space: RowAllocator) -> RowPointers:
        """Put the rows where there is room for them; the builder is empty afterwards."""
        from cellfeed.rows import page_kernels

        rows = space.place(self._sizes, self._genes.dtype, self._value_dtypes[self._width])
        where, disorder = rows.where, False
        for page in self._pages:
            disorder |= page_kernels.scatter_page(*page, *where)
        self._pages.clear()
        return rows.sorted(self._joinids) if disorder else rows
