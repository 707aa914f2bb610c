"""Rows whose genes get other columns: those of ``select_genes``, or of a join."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from cellfeed._joinids import IntArray
from cellfeed.rows.assemble import DenseBuffers
from cellfeed.rows.cell_rows import CellRows, ValueWidth
from cellfeed.rows.row_allocator import RowArrays

ROWS_PER_TASK = 128
"""Rows that a thread renumbers at once."""


@dataclass(frozen=True, eq=False)
class Columns:
    """The column of each gene that is read.

    Attributes
    ----------
    numbers
        uint32, shape (n_vars,): distinct columns.
    n_columns
        Number of columns; those without a gene have zeros.

    Examples
    --------
    >>> Columns.from_genes(np.array([2, -1, 0, 1])).numbers.tolist()
    [2, 3, 0]
    """

    numbers: npt.NDArray[np.uint32]
    n_columns: int

    @classmethod
    def from_genes(cls, genes: IntArray) -> Columns:
        """Make the columns of the genes of each column: their indices among those that are read, -1 for none."""
        columns = np.flatnonzero(genes >= 0)
        numbers = np.empty(len(columns), np.uint32)
        numbers[genes[columns]] = columns
        return cls(numbers, len(genes))

    @property
    def gene_dtype(self) -> np.dtype[Any]:
        """Type of the columns in rows."""
        return np.dtype(np.uint16 if self.n_columns <= 1 << 16 else np.uint32)

    @cached_property
    def _is_identity(self) -> bool:
        return np.array_equal(self.numbers, np.arange(len(self.numbers)))

    @cached_property
    def _is_ascending(self) -> bool:
        return bool((self.numbers[1:] > self.numbers[:-1]).all())

    def of(self, rows: CellRows, value_dtype: np.dtype[Any], buffers: DenseBuffers, threads: Executor) -> CellRows:
        """Return rows with these columns, and with wide values of a type; the same rows if nothing changes.

        Parameters
        ----------
        buffers
            Memory for rows that change.
        threads
            Share the rows.
        """
        keeps_genes = self._is_identity and rows.gene_dtype == self.gene_dtype
        has_type = rows.value_dtype == value_dtype or ValueWidth.of(rows.value_dtype) != ValueWidth.WIDE
        if keeps_genes and has_type:
            return rows
        is_wide = rows.widths == ValueWidth.WIDE
        if keeps_genes and not is_wide.any():
            return replace(rows, value_dtype=value_dtype)
        item_bytes = np.where(is_wide, value_dtype.itemsize, rows.widths)  # a width is the number of its bytes
        out, memory = _allocate(rows.sizes, self.gene_dtype, item_bytes, value_dtype, buffers)

        def write(low: int) -> None:
            from cellfeed.rows import column_kernels

            part = slice(low, low + ROWS_PER_TASK)
            before = rows.slice(part.start, part.stop).arrays, rows.widths[part], self.numbers
            after = out._replace(genes=out.genes[part], values=out.values[part], sizes=out.sizes[part])
            if self._is_ascending:
                column_kernels.renumber(*before, after)
            else:
                column_kernels.renumber_and_sort(*before, self.n_columns, after)

        list(threads.map(write, range(0, len(rows), ROWS_PER_TASK)))
        return replace(
            rows, genes=out.genes, values=out.values, gene_dtype=self.gene_dtype, value_dtype=value_dtype,
            owners=(memory,),
        )  # fmt: skip


def _allocate(
    sizes: IntArray,
    gene_dtype: np.dtype[Any],
    item_bytes: IntArray,
    value_dtype: np.dtype[Any],
    buffers: DenseBuffers,
) -> tuple[RowArrays, npt.NDArray[Any]]:
    """Return addresses for rows, first the values of each and then its genes, aligned to 8 bytes; and their memory."""
    value_bytes, gene_bytes = (sizes * item_bytes + 7) & ~7, (sizes * gene_dtype.itemsize + 7) & ~7
    ends = np.cumsum(value_bytes + gene_bytes)
    memory = buffers.borrow((1, int(ends[-1]) + 8 if len(ends) else 8), np.uint8)
    genes = ((memory.ctypes.data + 7) & ~7) + ends - gene_bytes
    types = np.empty(0, gene_dtype), np.empty(0, value_dtype)
    return RowArrays(genes, genes - value_bytes, sizes, *types), memory
