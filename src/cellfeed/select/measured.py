"""Which genes were measured in each cell: a zero of a gene that was not measured is not an observation.

Genes are measured or not for a whole group of cells, such as a data set. So a table of groups and genes is kept, and
the number of the group of each cell. :mod:`cellfeed.select.find_measured` makes them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cellfeed._joinids import IntArray

Table = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Measured:
    """Which genes were measured in the cells of a selection.

    Attributes
    ----------
    table
        bool, shape (n_groups, n_vars): the genes of the selection that were measured in each group of cells.
    groups
        Shape (n_obs,), of the smallest sufficient integer type: the row of the table of each cell.

    Examples
    --------
    >>> measured = Measured(np.array([[True, False], [True, True]]), np.array([1, 0, 0]))
    >>> measured.mask(np.array([2, 0])).tolist()
    [[True, False], [True, True]]
    """

    table: Table
    groups: npt.NDArray[np.integer[Any]]

    def take(self, positions: IntArray) -> Measured:
        """Keep the cells at some positions."""
        return replace(self, groups=self.groups[positions])

    def take_vars(self, positions: IntArray) -> Measured:
        """Keep the genes at some positions."""
        return replace(self, table=self.table[:, positions])

    def with_table(self, table: Table) -> Measured:
        """Return the same groups with the columns of another table."""
        return replace(self, table=table)

    def mask(self, positions: IntArray, out: Table | None = None) -> Table:
        """Return whether each gene was measured in the cells at ``positions``: bool, shape (n_cells, n_vars).

        Parameters
        ----------
        out
            Memory of this shape to write to.
        """
        # The rows exist, so that nothing is clipped; with another mode NumPy would write to a buffer first.
        return np.take(self.table, self.groups[positions], axis=0, out=out, mode="clip")
