"""Matrices of AnnData, of which rows are found and copied: CSR, or dense."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from cellfeed._joinids import IntArray, merge_runs, runs_of
from cellfeed.errors import ReadError
from cellfeed.rows.cell_rows import ValueWidth
from cellfeed.rows.row_allocator import RowArrays
from cellfeed.rows.row_builder import GeneTable
from cellfeed.rows.scratch import Scratch
from cellfeed.sources.anndata.chunks.elements import ChunkMemory, Elements, PackedElements, Ranges

MAX_GAP_ROWS = 64
"""Largest gap between two runs of rows whose bounds are read together."""


class PartMemory:
    """Memory for the rows of one part."""

    def __init__(self) -> None:
        self.indices, self.data, self.indptr = ChunkMemory(), ChunkMemory(), ChunkMemory()
        self.counts = Scratch()


class LocatedRows(Protocol):
    """Rows of a matrix whose numbers of values are known."""

    @property
    def sizes(self) -> IntArray:
        """int64, shape (n_rows,): values of each row."""

    @property
    def n_bytes(self) -> int:
        """Bytes that were read from the store."""

    def fill(self, rows: RowArrays, genes: GeneTable, *, as_counts: bool) -> tuple[int, int, bool]:
        """Copy the selected genes to rows.

        Returns
        -------
        The result of the kernel, ``NOT_COUNTS`` if ``as_counts`` and a value does not fit uint16; the row to which it
        belongs; and whether the genes of any row do not ascend.
        """


class Matrix(Protocol):
    """One matrix of a store. Thread-safe."""

    @property
    def n_columns(self) -> int:
        """Number of columns."""

    @property
    def n_rows(self) -> int:
        """Number of rows."""

    @property
    def nnz(self) -> int:
        """Number of stored values; of a dense matrix, an estimate of the values that are not zero."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""

    @property
    def chunk_size(self) -> int:
        """Values that are unpacked together."""

    def locate(self, rows: IntArray, memory: PartMemory) -> LocatedRows:
        """Find ascending rows."""

    def close(self) -> object:
        """Close the store."""


Close = Callable[[], object]
"""Closes a store."""


@dataclass(eq=False)
class UnpackedRows:
    """Rows whose columns and values are in memory."""

    columns: Ranges
    values: Ranges
    sizes: IntArray
    n_bytes: int
    n_columns: int
    memory: PartMemory

    def fill(self, rows: RowArrays, genes: GeneTable, *, as_counts: bool) -> tuple[int, int, bool]:
        """Copy the selected genes to rows."""
        from cellfeed.rows import page_kernels
        from cellfeed.sources.anndata.chunks import chunk_kernels

        values = self.values.elements
        if as_counts and values.dtype == np.float32:
            counts = self.memory.counts.array(len(values), np.uint16)
            if page_kernels.narrow_float32(values, values.view(np.int32), counts) == ValueWidth.WIDE:
                return chunk_kernels.NOT_COUNTS, 0, False
            values = counts
        elif as_counts and values.dtype.itemsize > 1 and page_kernels.value_width(values) == ValueWidth.WIDE:
            return chunk_kernels.NOT_COUNTS, 0, False
        starts = self.columns.starts, self.values.starts
        arguments = self.columns.elements, values, *starts, self.sizes, self.n_columns, genes.places, rows
        outcome: tuple[int, int, bool] = chunk_kernels.copy_rows(*arguments)
        return outcome


@dataclass(eq=False)
class PackedRows:
    """Rows whose chunks are unpacked, one after another, when they are copied."""

    columns: PackedElements
    values: PackedElements
    lows: IntArray
    sizes: IntArray
    n_columns: int
    memory: PartMemory
    n_bytes: int = 0

    def fill(self, rows: RowArrays, genes: GeneTable, *, as_counts: bool) -> tuple[int, int, bool]:
        """Copy the selected genes to rows."""
        from cellfeed.sources.anndata.chunks import chunk_kernels

        memory, size = self.memory, self.columns.chunk_size
        numbers = self.columns.chunks_of(self.lows, self.lows + self.sizes)
        unpacked = (
            memory.indices.unpacked.array(size, self.columns.dtype),
            memory.data.unpacked.array(size, self.values.dtype),
        )
        narrows = as_counts and self.values.dtype.itemsize > 2
        counts = memory.counts.array(size, np.uint16) if narrows else None
        with (
            self.columns.packed(numbers, unpacked[0], memory.indices.packed) as (columns, n_columns),
            self.values.packed(numbers, unpacked[1], memory.data.packed) as (values, n_values),
        ):
            self.n_bytes += n_columns + n_values
            chunks = numbers, self.lows, self.sizes, columns, values, counts
            outcome: tuple[int, int, bool] = chunk_kernels.fill_rows(
                *chunks, self.n_columns, genes.places, rows, self.columns.library
            )
        if outcome[0] >= chunk_kernels.BAD_READ:
            is_of_values, k = divmod(outcome[1], len(numbers))
            raise (self.values if is_of_values else self.columns).damaged(outcome[0], int(numbers[k]))
        return outcome


class CsrMatrix:
    """A CSR matrix: ``indptr`` has the bounds of the rows in ``indices`` and ``data``."""

    def __init__(
        self, indptr: Elements, indices: Elements, data: Elements, shape: tuple[int, int], nnz: int, close: Close
    ) -> None:
        self._indptr, self._indices, self._data = indptr, indices, data
        self.n_rows, self.n_columns = shape
        self.nnz = nnz
        self.dtype, self.chunk_size = data.dtype, data.chunk_size
        self.close = close

    def locate(self, rows: IntArray, memory: PartMemory) -> LocatedRows:
        """Find ascending rows, and load them unless their chunks can be unpacked one by one."""
        lows, highs, n_bytes = self._bounds(rows, memory)
        indices, data, sizes = self._indices, self._data, highs - lows
        if isinstance(indices, PackedElements) and isinstance(data, PackedElements):
            narrows = data.dtype in (np.uint8, np.uint16, np.float32)
            if indices.chunk_size == data.chunk_size and narrows:
                return PackedRows(indices, data, lows, sizes, self.n_columns, memory, n_bytes)
        columns, n_columns = indices.read(lows, highs, memory.indices)
        values, n_values = data.read(lows, highs, memory.data)
        return UnpackedRows(columns, values, sizes, n_bytes + n_columns + n_values, self.n_columns, memory)

    def _bounds(self, rows: IntArray, memory: PartMemory) -> tuple[IntArray, IntArray, int]:
        """Return the first element of each row and the one after its last, and the bytes that were read."""
        runs = merge_runs(runs_of(rows), max_gap=MAX_GAP_ROWS)
        bounds, n_bytes = self._indptr.read(runs[:, 0], runs[:, 1] + 1, memory.indptr)
        of = np.searchsorted(runs[:, 0], rows, side="right") - 1  # (n_rows,): the run of each row
        places = bounds.starts[of] + rows - runs[of, 0]
        lows = bounds.elements[places].astype(np.int64)
        highs = bounds.elements[places + 1].astype(np.int64)
        ends = np.append(lows[1:], self.nnz)
        if len(rows) and (lows[0] < 0 or bool((highs < lows).any()) or bool((highs > ends).any())):
            raise ReadError("indptr is damaged: its values do not ascend, or end outside of the values of X")
        return lows, highs, n_bytes


class DenseMatrix:
    """A two-dimensional array that zarr or h5py slices; zeros are left out.

    ``nnz`` is an estimate from rows at some places, with a margin.
    """

    def __init__(self, array: Any, close: Close) -> None:
        self._array = array
        self.n_rows, self.n_columns = map(int, array.shape)
        self.dtype: np.dtype[Any] = np.dtype(array.dtype).newbyteorder("=")
        self.chunk_size = math.prod(array.chunks or array.shape[1:])  # of HDF5 without chunks: any row is cheap
        self.close = close
        starts = np.unique(np.linspace(0, max(self.n_rows - SAMPLED_ROWS, 0), SAMPLED_PLACES, dtype=np.int64))
        sampled = [np.asarray(array[start : start + SAMPLED_ROWS]) for start in starts.tolist()]
        density = sum(map(np.count_nonzero, sampled)) / max(sum(part.size for part in sampled), 1)
        self.nnz = math.ceil(min(density * SAMPLE_MARGIN, 1) * self.n_rows * self.n_columns)

    def locate(self, rows: IntArray, memory: PartMemory) -> LocatedRows:
        """Load ascending rows, some at a time."""
        columns, values, sizes = [np.empty(0, np.int32)], [np.empty(0, self.dtype)], [np.empty(0, np.int64)]
        step = max(DENSE_VALUES // max(self.n_columns, 1), 1)
        for first, last in runs_of(rows).tolist():
            for low in range(first, last, step):
                dense = np.asarray(self._array[low : min(low + step, last)], self.dtype)
                row, column = np.nonzero(dense)
                columns.append(column.astype(np.int32))
                values.append(dense[row, column])
                sizes.append(np.bincount(row, minlength=len(dense)))
        n_values = np.concatenate(sizes)
        starts = np.cumsum(n_values) - n_values
        found = Ranges(np.concatenate(columns), starts), Ranges(np.concatenate(values), starts)
        n_bytes = len(rows) * self.n_columns * self.dtype.itemsize
        return UnpackedRows(*found, n_values, n_bytes, self.n_columns, memory)


SAMPLED_PLACES, SAMPLED_ROWS, SAMPLE_MARGIN = 8, 4, 1.25

DENSE_VALUES = 1 << 21
"""Values of a dense matrix in memory at the same time, zeros included."""
