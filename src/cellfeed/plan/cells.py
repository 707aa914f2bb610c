"""The selected cells, as far as planning needs them, and the chunks into which they are divided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cellfeed._geometry import ArrayGeometry
from cellfeed._joinids import IntArray, JoinIds


class Cells(Protocol):
    """Selected cells of an array; :class:`cellfeed.select.selection.Selection` implements it."""

    @property
    def joinids(self) -> JoinIds:
        """The joinids of the selected cells, ascending."""

    @property
    def nnz(self) -> npt.NDArray[Any] | None:
        """Shape (n_obs,): nnz of each cell, or ``None`` if it is unknown."""

    @property
    def geometry(self) -> ArrayGeometry:
        """How the values of X are laid out."""

    @property
    def is_remote(self) -> bool:
        """Whether X is on an object store."""

    @property
    def n_obs(self) -> int:
        """Number of selected cells."""

    @property
    def n_vars(self) -> int:
        """Number of selected genes."""

    @property
    def further(self) -> Sequence[Cells]:
        """The same cells in each matrix that is read beside X."""

    @property
    def held_bytes(self) -> int:
        """Bytes of embeddings, numeric columns of obs and the table of measured genes, which stay in memory."""

    @property
    def mask_bytes(self) -> int:
        """Bytes of a cell in the mask of measured genes; 0 if minibatches have none."""


@dataclass(frozen=True, eq=False)
class Chunks:
    """Chunks of cells, or of copies of cells.

    Attributes
    ----------
    bounds
        int64, shape (n_chunks + 1,): strictly ascending numbers that divide the cells into chunks.
    cells
        int64, shape (bounds[-1],): the position of the cell behind each number, if cells come several times or not at
        all; ascending within a chunk. ``None`` if the numbers are positions.
    """

    bounds: IntArray
    cells: IntArray | None = None

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @property
    def n_cells(self) -> int:
        """Number of cells in all chunks; copies of a cell count one by one."""
        return int(self.bounds[-1])

    def positions(self, k: int) -> IntArray:
        """Return the positions of the cells of a chunk, ascending."""
        numbers = np.arange(self.bounds[k], self.bounds[k + 1])
        return numbers if self.cells is None else self.cells[numbers]

    def nnz(self, cells: Cells) -> npt.NDArray[np.float64]:
        """Return the nnz of each chunk, from that of its cells or the mean of the array: float64, shape (n_chunks,)."""
        sizes = np.diff(self.bounds)
        if cells.nnz is None:
            nnz = sizes * cells.geometry.nnz_per_row
        elif len(sizes):
            each = cells.nnz if self.cells is None else cells.nnz[self.cells]
            nnz = np.add.reduceat(each, self.bounds[:-1], dtype=np.float64)
        else:
            nnz = np.zeros(0)
        return np.minimum(nnz, sizes * float(cells.n_vars))  # both count all genes, and few may be selected
