"""The cells of a window or minibatch, in order, with the addresses of their rows; minibatches are slices of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from cellfeed._joinids import IntArray
from cellfeed.rows.row_allocator import RowArrays, RowPointers


class ValueWidth(IntEnum):
    """Type of the values of a row; narrower types are smaller."""

    UINT8 = 1
    UINT16 = 2
    WIDE = 3
    """The type of the pool, for values that are not integers from 0 to 65535."""

    @classmethod
    def of(cls, dtype: np.dtype[Any]) -> ValueWidth:
        """Return the width of a type."""
        return _NARROW.get(dtype, cls.WIDE)


_NARROW = {np.dtype(np.uint8): ValueWidth.UINT8, np.dtype(np.uint16): ValueWidth.UINT16}


@dataclass(frozen=True, eq=False)
class CellRows:
    """Cells and their rows of X. A row keeps its address until its memory is freed.

    Attributes
    ----------
    positions
        int64, shape (n_cells,): positions of the cells in the selection.
    is_real
        bool, shape (n_cells,): False for a cell that is repeated to give all ranks the same number of cells.
    genes, values
        int64, shape (n_cells,): address of each row's first gene and first value.
    sizes
        int64, shape (n_cells,): nnz of each row.
    widths
        uint8, shape (n_cells,): type of each row's values, a :class:`ValueWidth`.
    gene_dtype, value_dtype
        Type of genes; type of the values of rows of ``ValueWidth.WIDE``.
    owners
        Objects that own the memory at the addresses, and tuples of them.
    """

    positions: IntArray
    is_real: npt.NDArray[np.bool_]
    genes: IntArray
    values: IntArray
    sizes: IntArray
    widths: npt.NDArray[np.uint8]
    gene_dtype: np.dtype[Any]
    value_dtype: np.dtype[Any]
    owners: tuple[object, ...] = ()

    @classmethod
    def from_pointers(cls, rows: RowPointers, positions: IntArray, is_real: npt.NDArray[np.bool_]) -> CellRows:
        """Return the rows as those of the cells at ``positions``, without owners."""
        return cls(
            positions=positions,
            is_real=is_real,
            genes=rows.genes,
            values=rows.values,
            sizes=rows.sizes,
            widths=np.full(len(positions), ValueWidth.of(rows.value_dtype), np.uint8),
            gene_dtype=rows.gene_dtype,
            value_dtype=rows.value_dtype,
        )

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def arrays(self) -> RowArrays:
        """The rows as an argument of kernels, to which ``widths`` belong."""
        types = np.empty(0, self.gene_dtype), np.empty(0, self.value_dtype)
        return RowArrays(self.genes, self.values, self.sizes, *types)

    def take(self, order: IntArray) -> CellRows:
        """Return rows by their indices, int64, shape (n,)."""
        return replace(self, **{name: getattr(self, name)[order] for name in _COLUMNS})

    def slice(self, low: int, high: int) -> CellRows:
        """Return the rows from ``low`` to ``high``."""
        return replace(self, **{name: getattr(self, name)[low:high] for name in _COLUMNS})

    @classmethod
    def join(cls, parts: Sequence[CellRows]) -> CellRows:
        """Return the rows of several parts, one part after another."""
        if not parts:
            return _NO_ROWS
        if len(parts) == 1:
            return parts[0]
        columns: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS}
        wide = (part.value_dtype for part in parts if ValueWidth.of(part.value_dtype) == ValueWidth.WIDE)
        columns["value_dtype"] = next(wide, parts[0].value_dtype)
        columns["owners"] = tuple({id(part.owners): part.owners for part in parts}.values())
        return replace(parts[0], **columns)


_COLUMNS = ("positions", "is_real", "genes", "values", "sizes", "widths")

_EMPTY = np.empty(0, np.int64)
_NO_ROWS = CellRows.from_pointers(
    RowPointers(_EMPTY, _EMPTY, _EMPTY, np.dtype(np.uint16), np.dtype(np.uint8)), _EMPTY, np.empty(0, np.bool_)
)
