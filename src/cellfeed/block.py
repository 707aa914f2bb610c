"""Rows of X in memory, compactly: what a reader gives and what minibatches are cut from."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cellfeed.errors import ReadError
from cellfeed.joinids import IntArray, runs_of


@dataclass(frozen=True, eq=False)
class Block:
    """Some rows of X as canonical CSR: each row's genes ascend, none twice.

    Attributes
    ----------
    indptr
        int64, shape (n_rows + 1,).
    genes
        uint16 or uint32, shape (nnz,): columns of X, that is places among the selected genes.
    values
        shape (nnz,): uint8 or uint16 where they hold every value exactly, else the type asked for.
    """

    indptr: IntArray
    genes: npt.NDArray[Any]
    values: npt.NDArray[Any]

    @classmethod
    def empty(cls, sizes: IntArray, gene_dtype: npt.DTypeLike, value_dtype: npt.DTypeLike) -> Block:
        """Make a block that is still to be filled, for rows of so many values."""
        indptr = np.zeros(len(sizes) + 1, np.int64)
        np.cumsum(sizes, out=indptr[1:])
        return cls(indptr, np.empty(indptr[-1], gene_dtype), np.empty(indptr[-1], value_dtype))

    @property
    def n_rows(self) -> int:
        """Rows in the block."""
        return len(self.indptr) - 1

    @property
    def nbytes(self) -> int:
        """Bytes that the block holds."""
        return self.indptr.nbytes + self.genes.nbytes + self.values.nbytes

    def addresses(self) -> tuple[IntArray, IntArray]:
        """Addresses of each row's first gene and first value: int64, shape (n_rows,) each."""
        starts = self.indptr[:-1]
        return (
            self.genes.ctypes.data + starts * self.genes.itemsize,
            self.values.ctypes.data + starts * self.values.itemsize,
        )

    def tight(self, sizes: IntArray) -> Block:
        """Return the block of rows of which only the first ``sizes`` values are there."""
        from cellfeed import kernels

        if np.array_equal(sizes, np.diff(self.indptr)):
            return self
        block = Block.empty(sizes, self.genes.dtype, self.values.dtype)
        kernels.close_gaps(self.indptr, self.genes, self.values, block.indptr, block.genes, block.values)
        return block

    def sorted(self, joinids: IntArray) -> Block:
        """Sort rows by gene, in place; a gene that a row holds twice is a :class:`ReadError`."""
        from cellfeed import kernels

        twice = kernels.sort_rows(self.indptr, self.genes, self.values)
        if twice >= 0:
            row = int(np.searchsorted(self.indptr, twice, side="right")) - 1
            raise ReadError(
                f"X holds more than one value for soma_joinid {joinids[row]} at selected gene "
                f"{self.genes[twice]} (counted from 0 in var_joinids); cellfeed neither adds nor drops "
                f"duplicates: write the array again without them"
            )
        return self


class Reader(Protocol):
    """What the rest of cellfeed needs of a store: rows by joinid."""

    def read(self, joinids: IntArray, part: IntArray, n_parts: int) -> list[Block]:
        """Return the rows of ascending ``joinids`` in blocks: block ``p`` has, in their order, those of part ``p``.

        ``part`` has an integer below ``n_parts`` for each joinid. Thread-safe.
        """

    def close(self) -> None:
        """Give back what reading holds open."""


@dataclass(frozen=True, eq=False)
class GeneTable:
    """Where each column of the array goes among the selected genes.

    Attributes
    ----------
    n_vars
        Selected genes.
    base, table
        Column ``base + i`` of the array is selected gene ``table[i]``; ``0xFFFFFFFF`` where it is not
        wanted. An empty table means that columns are places already.
    joinids
        Ascending; set only where they lie too far apart for a table.
    """

    n_vars: int
    base: int
    table: npt.NDArray[np.uint32]
    joinids: IntArray | None = None

    @classmethod
    def from_joinids(cls, var_joinids: IntArray, n_columns: int) -> GeneTable:
        """Make the table for ascending ``var_joinids`` of an array of ``n_columns`` columns."""
        n_vars = len(var_joinids)
        nothing = np.empty(0, np.uint32)
        if n_vars == n_columns:  # distinct and within the array, so all of it
            return cls(n_vars, 0, nothing)
        base = int(var_joinids[0]) if n_vars else 0
        span = int(var_joinids[-1]) - base + 1 if n_vars else 1
        if span > 1 << 26:
            return cls(n_vars, 0, np.arange(n_vars, dtype=np.uint32), var_joinids)
        table = np.full(span, 0xFFFFFFFF, np.uint32)
        table[var_joinids - base] = np.arange(n_vars, dtype=np.uint32)
        return cls(n_vars, base, table)

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


class BlockBuilder:
    """Turn pages of (row, column, value) triples, as a store gives them, into one :class:`Block`.

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
        from cellfeed import kernels

        if len(dim0) == 0 or len(self._joinids) == 0:
            return
        run_row, run_size, n_unwanted = self._rows(dim0)
        width, values = self._narrow(data)
        self._width = max(self._width, width)
        genes = np.empty(len(dim0), self._genes.dtype)
        n_kept = len(dim0)
        if not self._genes.keeps_all:
            columns, table, base = self._genes.columns(dim1), self._genes.table, self._genes.base
            n_kept = kernels.keep_genes(columns, values, run_row, run_size, table, base, genes, values)
        elif n_unwanted:
            n_kept = kernels.keep_rows(dim1, genes, run_row, run_size)
            kernels.keep_rows(values, values, run_row, run_size)
        else:
            kernels.narrow(dim1, genes)
        kernels.add_sizes(run_row, run_size, self._sizes)
        if n_kept < len(genes) // 2:  # a copy is worth the memory of what was not wanted
            genes, values = genes[:n_kept].copy(), values[:n_kept].copy()
        self._pages.append((genes[:n_kept], values[:n_kept], run_row, run_size))

    def _rows(self, dim0: IntArray) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], int]:
        """Cut a page into stretches of one row: their rows, their sizes, and how many are unwanted."""
        from cellfeed import kernels

        rows: list[npt.NDArray[np.int32]] = []
        sizes: list[npt.NDArray[np.int32]] = []
        at = n_unwanted = 0
        while at < len(dim0):
            room = (len(dim0) - at) // 32 + 64  # a guess at the number of stretches; what is left gets another
            row, size = np.empty(room, np.int32), np.empty(room, np.int32)
            at, n_runs, unwanted = kernels.find_rows(dim0, at, self._first, self._stop, self._row0, row, size)
            rows.append(row[:n_runs])
            sizes.append(size[:n_runs])
            n_unwanted += unwanted
        return np.concatenate(rows), np.concatenate(sizes), n_unwanted

    def _narrow(self, data: npt.NDArray[Any]) -> tuple[int, npt.NDArray[Any]]:
        """Copy the values of a page to a small type that holds them; the width is 0, 1 or 2, as for the block."""
        from cellfeed import kernels

        if data.dtype == np.float32:
            values: npt.NDArray[Any] = np.empty(len(data), np.uint16)
            width = int(kernels.narrow_float32(data, data.view(np.int32), values))
        else:
            width = int(kernels.value_width(data))
            values = data.astype(np.uint16) if width < 2 else data
        if width < 2 and self._value_dtypes[width].itemsize <= self._value_dtypes[2].itemsize:
            return width, values
        return 2, data.astype(self._value_dtypes[2])

    def finish(self, part: IntArray, n_parts: int) -> list[Block]:
        """Make the blocks of some parts, as a :class:`Reader` does; the builder is empty afterwards."""
        from cellfeed import kernels

        space = RowSpace(self._sizes, part, n_parts, self._genes.dtype, self._value_dtypes[self._width])
        disorder = False
        for page in self._pages:
            disorder |= kernels.scatter_page(*page, *space.where)
        self._pages.clear()
        return space.finish(self._joinids, disorder=disorder)


class RowSpace:
    """Memory for rows of known sizes, in a block for each part: each block can go when its rows have left.

    Parameters
    ----------
    sizes
        int64, shape (n_rows,): values of each row at most.
    part, n_parts
        As for :meth:`Reader.read`.
    gene_dtype, value_dtype
        Types of the blocks.
    """

    def __init__(
        self, sizes: IntArray, part: IntArray, n_parts: int, gene_dtype: npt.DTypeLike, value_dtype: npt.DTypeLike
    ) -> None:
        by_part = np.argsort(part, kind="stable")
        edges = np.searchsorted(part[by_part], np.arange(n_parts + 1))
        self._rows = [by_part[low:high] for low, high in itertools.pairwise(edges)]
        self._blocks = [Block.empty(sizes[rows], gene_dtype, value_dtype) for rows in self._rows]
        self._genes_at, self._values_at = np.empty(len(sizes), np.int64), np.empty(len(sizes), np.int64)
        self._filled = np.zeros(len(sizes), np.int64)
        for rows, block in zip(self._rows, self._blocks, strict=True):
            self._genes_at[rows], self._values_at[rows] = block.addresses()

    @property
    def where(self) -> tuple[npt.NDArray[Any], ...]:
        """What kernels need: addresses of each row's genes and values, how many are there; and the two types."""
        types = self._blocks[0].genes[:0], self._blocks[0].values[:0]
        return (self._genes_at, self._values_at, self._filled, *types)

    def finish(self, joinids: IntArray, *, disorder: bool) -> list[Block]:
        """Return the blocks; shorter rows than foreseen move together, and all are sorted if any is in disorder."""
        return [
            block.tight(self._filled[rows]).sorted(joinids[rows]) if disorder else block.tight(self._filled[rows])
            for rows, block in zip(self._rows, self._blocks, strict=True)
        ]
