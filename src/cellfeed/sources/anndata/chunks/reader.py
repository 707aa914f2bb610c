"""Reads rows of the matrix of an AnnData source, which may lie in several parts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cellfeed._joinids import IntArray
from cellfeed.errors import ReadError
from cellfeed.rows.row_allocator import RowAllocator, RowPointers
from cellfeed.rows.row_builder import GeneTable
from cellfeed.rows.scratch import RowScratch
from cellfeed.sources.anndata.chunks.matrices import LocatedRows, Matrix, PartMemory
from cellfeed.sources.redact import failed_read, reraise_as
from cellfeed.stats import Meter


class ReadMemory:
    """Memory of one read at a time."""

    def __init__(self) -> None:
        self._parts: list[PartMemory] = []
        self.rows_of_all_genes = RowScratch()

    def part(self, i: int) -> PartMemory:
        """Return the memory for the ``i``-th part that the read visits."""
        while len(self._parts) <= i:
            self._parts.append(PartMemory())
        return self._parts[i]


class _Part(NamedTuple):
    """The rows of one part in a read: the number of the part, and the place of its rows."""

    k: int
    own: slice
    rows: LocatedRows


class AnnDataReader:
    """A :class:`~cellfeed.rows.row_allocator.Reader` of the rows of several parts, one part after another.

    Parameters
    ----------
    matrices
        The matrix of each part.
    bounds
        int64, shape (n_parts + 1,): the first row of each part, and the number of rows.
    genes
        For each part, the place of each column among the selected genes.
    value_dtype
        Type of values that are not small counts.
    name
        The store in errors.
    check
        Raises an error if a part, by its number, is not any more what it was; called after each read.
    meter
        Counts bytes, values and seconds.
    """

    def __init__(
        self,
        matrices: Sequence[Matrix],
        bounds: IntArray,
        genes: Sequence[GeneTable],
        value_dtype: npt.DTypeLike,
        *,
        name: str,
        check: Callable[[int], None],
        meter: Meter,
    ) -> None:
        self._matrices = matrices
        self._bounds = bounds
        self._genes = genes
        self._value_dtype = np.dtype(value_dtype)
        self._name = name
        self._check = check
        self._meter = meter
        self._may_be_counts = True  # until a read finds a value that is not a count
        self._lock = threading.Lock()
        self._free: list[ReadMemory] = []
        self._closed = False

    def read(self, joinids: IntArray, allocator: RowAllocator) -> RowPointers:
        """Read ascending rows into memory of an allocator."""
        with self._lock:
            if self._closed:
                raise ReadError(f"the reader of {self._name!r} is closed")
            memory = self._free.pop() if self._free else ReadMemory()
        with reraise_as(ReadError, failed_read(joinids, self._name), frozenset()):
            rows = self._read(joinids, allocator, memory)
        with self._lock:
            self._free.append(memory)
        return rows

    def _read(self, joinids: IntArray, allocator: RowAllocator, memory: ReadMemory) -> RowPointers:
        started = time.perf_counter()
        edges = np.searchsorted(joinids, self._bounds).tolist()  # (n_parts + 1,)
        parts: list[_Part] = []
        for k, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
            if low < high:
                own = joinids[low:high] - self._bounds[k]
                parts.append(_Part(k, slice(low, high), self._matrices[k].locate(own, memory.part(len(parts)))))
        read_s = time.perf_counter() - started
        rows = None
        while rows is None:  # the second attempt does not assume counts
            rows = self._fill(parts, joinids, allocator, memory)
        for part in parts:
            self._check(part.k)
        build_s = time.perf_counter() - started - read_s
        n_bytes = sum(part.rows.n_bytes for part in parts)
        self._meter.add(read_s=read_s, build_s=build_s, bytes_read=n_bytes, nnz=rows.nnz)
        return rows

    def _fill(
        self, parts: Sequence[_Part], joinids: IntArray, allocator: RowAllocator, memory: ReadMemory
    ) -> RowPointers | None:
        """Copy the selected genes to memory of an allocator; return ``None`` if values were assumed to be counts."""
        from cellfeed.sources.anndata.chunks import chunk_kernels

        sizes = np.concatenate([part.rows.sizes for part in parts] or [np.empty(0, np.int64)])
        keeps_all = all(self._genes[part.k].keeps_all for part in parts)
        allocate = allocator.allocate if keeps_all else memory.rows_of_all_genes.allocate
        dtype = self._value_dtype_of([self._matrices[part.k].dtype for part in parts])
        rows = allocate(sizes, self._genes[0].dtype, dtype)
        unfilled, disorder = rows.unfilled, False
        as_counts = dtype != self._value_dtype
        for k, own, located in parts:
            part = unfilled._replace(genes=unfilled.genes[own], values=unfilled.values[own], sizes=unfilled.sizes[own])
            result, row, disordered = located.fill(part, self._genes[k], as_counts=as_counts)
            if result == chunk_kernels.NOT_COUNTS:
                self._may_be_counts = False
                return None
            if result == chunk_kernels.BAD_COLUMN:
                n_columns = self._matrices[k].n_columns
                raise ReadError(f"row {joinids[own][row]} has a value outside of its {n_columns} columns: X is damaged")
            disorder |= disordered
        if not keeps_all:
            rows = rows.copy_to(allocator, sizes=unfilled.sizes)
        return rows.sorted(joinids) if disorder else rows

    def _value_dtype_of(self, stored: Sequence[np.dtype[Any]]) -> np.dtype[Any]:
        """Return the type of the values of rows: a small unsigned type, while all values so far were counts."""
        wide = self._value_dtype
        largest = max((dtype.itemsize for dtype in stored), default=1)
        if all(dtype in (np.uint8, np.uint16) for dtype in stored) and largest <= wide.itemsize:
            return np.dtype(np.uint8 if largest == 1 else np.uint16)
        return np.dtype(np.uint16) if self._may_be_counts and wide.itemsize > 2 else wide

    def close(self) -> None:
        """Close the stores; a later read is an error."""
        with self._lock:
            self._closed = True
            self._free.clear()
        for matrix in self._matrices:
            matrix.close()
