"""How the values of X are laid out in a store."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ArrayGeometry:
    """The layout of X, from its schema and the footers of its files.

    Attributes
    ----------
    row_extent, column_extent
        Rows and columns of a space tile. A row-block is the rows of one extent, counted from row 0.
    capacity
        Values per data tile.
    n_rows, n_columns
        Shape of the array.
    nnz
        Number of stored values.
    dtype
        NumPy name of the type of the values.
    """

    row_extent: int
    column_extent: int
    capacity: int
    n_rows: int
    n_columns: int
    nnz: int
    dtype: str

    @property
    def nnz_per_row(self) -> float:
        """Mean nnz of a row."""
        return self.nnz / max(self.n_rows, 1)
