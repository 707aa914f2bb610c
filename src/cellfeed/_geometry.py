"""How the values of X are laid out in a store."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ArrayGeometry:
    """How the bytes of X lie, from its schema and its footers.

    Attributes
    ----------
    row_extent, column_extent
        Rows and columns of a space tile; rows of one extent, counted from 0, are a row-block.
    capacity
        Values in a data tile.
    n_rows, n_columns
        The array's shape.
    n_values
        Values stored.
    dtype
        Type of the values, by NumPy's name.
    """

    row_extent: int
    column_extent: int
    capacity: int
    n_rows: int
    n_columns: int
    n_values: int
    dtype: str

    @property
    def values_per_row(self) -> float:
        """Mean number of stored values in a row."""
        return self.n_values / max(self.n_rows, 1)
