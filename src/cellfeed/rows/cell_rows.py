"""Cells in their order of leaving, each with its place in memory: minibatches are slices of this."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cellfeed._joinids import IntArray
from cellfeed.rows.row_allocator import RowPointers

WIDTHS = {np.dtype(np.uint8): 1, np.dtype(np.uint16): 2}
"""How a row tells the type of its values; 0 is the type that the whole pool uses where these do not do."""


@dataclass(frozen=True, eq=False)
class CellRows:
    """Some cells. Rows of X do not move until they leave: their addresses are kept.

    Attributes
    ----------
    positions
        int64, shape (n,): the cells, in order.
    is_real
        bool, shape (n,): False where a cell repeats another to even out the ranks.
    genes, values
        int64, shape (n,): addresses of each row's first gene and first value.
    sizes
        int64, shape (n,): stored values of each row.
    widths
        uint8, shape (n,): types of the values, as ``WIDTHS`` has them.
    gene_dtype, value_dtype
        Type of genes; type of those values that no width tells.
    held
        What must live for as long as the addresses are to be good.
    """

    positions: IntArray
    is_real: npt.NDArray[np.bool_]
    genes: IntArray
    values: IntArray
    sizes: IntArray
    widths: npt.NDArray[np.uint8]
    gene_dtype: np.dtype[Any]
    value_dtype: np.dtype[Any]
    held: tuple[object, ...] = ()

    @classmethod
    def of(cls, placed: RowPointers, positions: IntArray, is_real: npt.NDArray[np.bool_]) -> CellRows:
        """Say which cells some rows are; nothing holds their memory yet."""
        width = WIDTHS.get(placed.value_dtype, 0)
        return cls(
            positions=positions,
            is_real=is_real,
            genes=placed.genes,
            values=placed.values,
            sizes=placed.sizes,
            widths=np.full(len(positions), width, np.uint8),
            gene_dtype=placed.gene_dtype,
            value_dtype=placed.value_dtype,
        )

    def __len__(self) -> int:
        return len(self.positions)

    def take(self, order: IntArray) -> CellRows:
        """Return rows by their indices, int64, shape (n,)."""
        return replace(self, **{name: getattr(self, name)[order] for name in _COLUMNS})

    def cut(self, low: int, high: int) -> CellRows:
        """Return the rows from ``low`` to ``high``."""
        return replace(self, **{name: getattr(self, name)[low:high] for name in _COLUMNS})

    @classmethod
    def join(cls, parts: Sequence[CellRows]) -> CellRows:
        """Return the rows of several parts, end to end."""
        if not parts:
            return _NONE
        if len(parts) == 1:
            return parts[0]
        columns: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS}
        others = (part.value_dtype for part in parts if part.value_dtype not in WIDTHS)
        columns["value_dtype"] = next(others, parts[0].value_dtype)
        columns["held"] = tuple(dict.fromkeys(holder for part in parts for holder in part.held))
        return replace(parts[0], **columns)


_COLUMNS = ("positions", "is_real", "genes", "values", "sizes", "widths")

_NOTHING = np.empty(0, np.int64)
_NONE = CellRows.of(
    RowPointers(_NOTHING, _NOTHING, _NOTHING, np.dtype(np.uint16), np.dtype(np.uint8)), _NOTHING, np.empty(0, np.bool_)
)
