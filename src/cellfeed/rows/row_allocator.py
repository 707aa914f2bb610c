"""Where rows of X lie in memory, compactly: what a reader fills and what minibatches are cut from."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cellfeed._joinids import IntArray
from cellfeed.errors import ReadError
from cellfeed.rows.slabs import Arena


class RepeatedPlaceError(ReadError):
    """A row holds more than one value of one gene."""


@dataclass(frozen=True, eq=False)
class RowPointers:
    """Rows of X at known addresses, canonical: each row's genes ascend, none twice.

    Attributes
    ----------
    genes, values
        int64, shape (n,): addresses of each row's first gene and first value.
    sizes
        int64, shape (n,): stored values of each row.
    gene_dtype
        uint16 or uint32: columns of X, that is places among the selected genes.
    value_dtype
        uint8 or uint16 where they hold every value exactly, else the type asked for.
    """

    genes: IntArray
    values: IntArray
    sizes: IntArray
    gene_dtype: np.dtype[Any]
    value_dtype: np.dtype[Any]

    @property
    def nnz(self) -> int:
        """Values of all rows."""
        return int(self.sizes.sum())

    @property
    def types(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Types of genes and values, as kernels want them: empty arrays."""
        return np.empty(0, self.gene_dtype), np.empty(0, self.value_dtype)

    @property
    def where(self) -> tuple[npt.NDArray[Any], ...]:
        """What kernels that fill rows need: addresses; how many values are there, none yet; and the two types."""
        return (self.genes, self.values, np.zeros(len(self.sizes), np.int64), *self.types)

    def moved(self, space: RowAllocator, sizes: IntArray) -> RowPointers:
        """Copy the first ``sizes`` values of each row to where there is room for them."""
        from cellfeed.rows import kernels

        placed = space.place(sizes, self.gene_dtype, self.value_dtype)
        kernels.move_rows(self.genes, self.values, sizes, *self.types, placed.genes, placed.values)
        return placed

    def sorted(self, joinids: IntArray) -> RowPointers:
        """Sort rows by gene, in place; a gene that a row holds twice is a :class:`RepeatedPlaceError`."""
        from cellfeed.rows import kernels

        row, gene = kernels.sort_rows(self.genes, self.values, self.sizes, *self.types)
        if row >= 0:
            raise RepeatedPlaceError(
                f"X holds more than one value for soma_joinid {joinids[row]} at selected gene "
                f"{gene} (counted from 0 in var_joinids); cellfeed neither adds nor drops "
                f"duplicates: write the array again without them"
            )
        return self


class RowAllocator:
    """Memory for the rows of one read: those that leave together lie together, so that it can go with them.

    Parameters
    ----------
    arenas
        Where rows go.
    part
        int64, shape (n,): index of the arena of each row.
    lock
        Held while room is made: several reads may share arenas.
    value_bytes
        Room for each value at least.
    """

    def __init__(self, arenas: Sequence[Arena], part: IntArray, lock: threading.Lock, *, value_bytes: int = 1) -> None:
        self._shelves = arenas
        self._part = part
        self._lock = lock
        self._value_bytes = value_bytes

    def at_least(self, value_bytes: int) -> RowAllocator:
        """Return the same space with room for so many bytes for each value at least."""
        return RowAllocator(self._shelves, self._part, self._lock, value_bytes=value_bytes)

    def place(self, sizes: IntArray, gene_dtype: npt.DTypeLike, value_dtype: npt.DTypeLike) -> RowPointers:
        """Make room for rows of so many values each: int64, shape (n,)."""
        from cellfeed.rows import kernels

        genes, values = np.empty(len(sizes), np.int64), np.empty(len(sizes), np.int64)
        placed = RowPointers(genes, values, sizes, np.dtype(gene_dtype), np.dtype(value_dtype))
        widths = placed.gene_dtype.itemsize, max(placed.value_dtype.itemsize, self._value_bytes)
        row = 0
        with self._lock:
            at = np.array([arena.at for arena in self._shelves], np.int64)
            end = np.array([arena.end for arena in self._shelves], np.int64)
            while row < len(sizes):
                row, lacking = kernels.place_rows(sizes, self._part, row, *widths, at, end, genes, values)
                if row < len(sizes):
                    p = self._part[row]
                    self._shelves[p].extend(lacking)
                    at[p], end[p] = self._shelves[p].at, self._shelves[p].end
            for arena, filled_to in zip(self._shelves, at.tolist(), strict=True):
                arena.at = filled_to
        return placed


class Reader(Protocol):
    """What the rest of cellfeed needs of a store: rows by joinid."""

    def read(self, joinids: IntArray, space: RowAllocator) -> RowPointers:
        """Put the rows of ascending ``joinids`` where ``space`` has room for them, and say where. Thread-safe."""

    def close(self) -> None:
        """Give back what reading holds open."""
