"""Rows of X in memory: where a reader writes them, and the arrays of addresses that describe them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from cellfeed._joinids import IntArray
from cellfeed.errors import ReadError
from cellfeed.rows.slabs import Arena


class RepeatedPlaceError(ReadError):
    """A row has more than one value of one gene."""


class RowArrays(NamedTuple):
    """Rows of X as an argument of kernels.

    Attributes
    ----------
    genes, values
        int64, shape (n_rows,): address of each row's first gene and first value.
    sizes
        int64, shape (n_rows,): nnz of each row. Kernels that write rows count it up as they append values.
    gene_type, value_type
        Empty arrays of the type of genes and of the type of values.
    """

    genes: IntArray
    values: IntArray
    sizes: IntArray
    gene_type: npt.NDArray[Any]
    value_type: npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class RowPointers:
    """Rows of X at known addresses, canonical: genes ascend within a row and occur once.

    Attributes
    ----------
    genes, values
        int64, shape (n_rows,): address of each row's first gene and first value.
    sizes
        int64, shape (n_rows,): nnz of each row.
    gene_dtype
        uint16 or uint32: genes are columns of X, numbered among the selected genes.
    value_dtype
        uint8 or uint16 if they represent every value exactly, else the type that the reader was asked for.
    """

    genes: IntArray
    values: IntArray
    sizes: IntArray
    gene_dtype: np.dtype[Any]
    value_dtype: np.dtype[Any]

    @property
    def nnz(self) -> int:
        """Number of values in all rows."""
        return int(self.sizes.sum())

    @property
    def types(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Empty arrays of the types of genes and values."""
        return np.empty(0, self.gene_dtype), np.empty(0, self.value_dtype)

    @property
    def arrays(self) -> RowArrays:
        """The rows as an argument of kernels that read them."""
        return RowArrays(self.genes, self.values, self.sizes, *self.types)

    @property
    def unfilled(self) -> RowArrays:
        """The rows as an argument of kernels that fill them: without values so far."""
        return self.arrays._replace(sizes=np.zeros_like(self.sizes))

    def copy_to(self, allocator: RowAllocator, sizes: IntArray) -> RowPointers:
        """Copy the first ``sizes`` values of each row to memory of an allocator."""
        from cellfeed.rows import kernels

        copies = allocator.allocate(sizes, self.gene_dtype, self.value_dtype)
        kernels.copy_rows(self.arrays, copies.arrays)
        return copies

    def repeat(self, numbers: IntArray, allocator: RowAllocator) -> RowPointers:
        """Return rows by their ascending numbers; a row that is repeated is copied to memory of an allocator."""
        again = np.flatnonzero(np.diff(numbers, prepend=-1) == 0)
        genes, values, sizes = self.genes[numbers], self.values[numbers], self.sizes[numbers]
        repeated = replace(self, genes=genes[again], values=values[again], sizes=sizes[again])
        copies = repeated.copy_to(allocator.take(again), repeated.sizes)
        genes[again], values[again] = copies.genes, copies.values
        return replace(self, genes=genes, values=values, sizes=sizes)

    def sorted(self, joinids: IntArray) -> RowPointers:
        """Sort the genes of each row in place.

        Raises
        ------
        RepeatedPlaceError
            If a row has more than one value of one gene.
        """
        from cellfeed.rows import kernels

        row, gene = kernels.sort_rows(self.arrays)
        if row >= 0:
            raise RepeatedPlaceError(
                f"X holds more than one value for soma_joinid {joinids[row]} at selected gene "
                f"{gene} (counted from 0 in var_joinids); cellfeed neither adds nor drops "
                f"duplicates: write the array again without them"
            )
        return self


class RowAllocator:
    """Allocates memory for the rows of one read: rows of the same window share an arena and are freed together.

    Parameters
    ----------
    arenas
        The arenas of the windows.
    arena_numbers
        int64, shape (n_rows,): index of the arena of each row.
    lock
        Held while memory is allocated: several reads may share arenas.
    min_value_bytes
        Smallest number of bytes to reserve per value.
    """

    def __init__(
        self, arenas: Sequence[Arena], arena_numbers: IntArray, lock: threading.Lock, *, min_value_bytes: int = 1
    ) -> None:
        self._arenas = arenas
        self._arena_numbers = arena_numbers
        self._lock = lock
        self._min_value_bytes = min_value_bytes

    def take(self, rows: IntArray) -> RowAllocator:
        """Return an allocator for some of the rows."""
        return RowAllocator(self._arenas, self._arena_numbers[rows], self._lock, min_value_bytes=self._min_value_bytes)

    def with_value_bytes(self, n_bytes: int) -> RowAllocator:
        """Return an allocator of the same arenas that reserves at least ``n_bytes`` per value."""
        return RowAllocator(self._arenas, self._arena_numbers, self._lock, min_value_bytes=n_bytes)

    def allocate(self, sizes: IntArray, gene_dtype: npt.DTypeLike, value_dtype: npt.DTypeLike) -> RowPointers:
        """Reserve memory for rows of ``sizes`` values: int64, shape (n_rows,)."""
        from cellfeed.rows import kernels

        genes, values = np.empty(len(sizes), np.int64), np.empty(len(sizes), np.int64)
        rows = RowPointers(genes, values, sizes, np.dtype(gene_dtype), np.dtype(value_dtype))
        widths = rows.gene_dtype.itemsize, max(rows.value_dtype.itemsize, self._min_value_bytes)
        row = 0
        with self._lock:
            free = np.array([arena.free for arena in self._arenas], np.int64)  # (n_arenas,), addresses
            ends = np.array([arena.end for arena in self._arenas], np.int64)
            while row < len(sizes):
                row, missing = kernels.place_rows(sizes, self._arena_numbers, row, *widths, free, ends, genes, values)
                if row < len(sizes):  # the arena of this row lacks memory
                    number = self._arena_numbers[row]
                    self._arenas[number].extend(missing)
                    free[number], ends[number] = self._arenas[number].free, self._arenas[number].end
            for arena, address in zip(self._arenas, free.tolist(), strict=True):
                arena.free = address
        return rows


class Reader(Protocol):
    """Reads rows of X by joinid."""

    def read(self, joinids: IntArray, allocator: RowAllocator) -> RowPointers:
        """Read the rows of ascending ``joinids`` into memory of an allocator. Thread-safe."""

    def close(self) -> None:
        """Release the files, threads and memory of the reader."""
