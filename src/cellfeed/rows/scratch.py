"""Memory of a reader that is reused by its reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cellfeed._joinids import IntArray
from cellfeed.rows.row_allocator import RowPointers


class Scratch:
    """Memory that grows to the largest array that was requested."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def array(self, size: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return an array with undefined values, valid until the next call."""
        n_bytes = size * np.dtype(dtype).itemsize
        if self._memory.nbytes < n_bytes:
            self._memory = np.empty(n_bytes + n_bytes // 4, np.uint8)
        return self._memory[:n_bytes].view(dtype)


class RowScratch:
    """Memory for rows, with the interface of a :class:`~cellfeed.rows.row_allocator.RowAllocator`."""

    def __init__(self) -> None:
        self._genes, self._values = Scratch(), Scratch()

    def allocate(self, sizes: IntArray, gene_dtype: npt.DTypeLike, value_dtype: npt.DTypeLike) -> RowPointers:
        """Reserve memory for rows of ``sizes`` values: int64, shape (n_rows,). It is valid until the next call."""
        nnz = int(sizes.sum())
        genes, values = self._genes.array(nnz, gene_dtype), self._values.array(nnz, value_dtype)
        before = np.cumsum(sizes) - sizes  # (n_rows,): values of the rows before
        return RowPointers(
            genes.ctypes.data + before * genes.itemsize,
            values.ctypes.data + before * values.itemsize,
            sizes,
            genes.dtype,
            values.dtype,
        )
