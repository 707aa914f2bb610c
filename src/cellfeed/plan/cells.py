"""The selected cells, as far as planning needs them."""

from __future__ import annotations

from collections.abc import Sequence
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
        """Bytes of embeddings and numeric columns of obs, which stay in memory."""


def nnz_of_chunks(cells: Cells, bounds: IntArray) -> npt.NDArray[np.float64]:
    """Return the nnz of each chunk, from the nnz of its cells or the mean of the array: float64, shape (n_chunks,).

    Parameters
    ----------
    bounds
        int64, shape (n_chunks + 1,): positions that divide the cells into chunks.
    """
    sizes = np.diff(bounds)
    if cells.nnz is None:
        nnz = sizes * cells.geometry.nnz_per_row
    elif len(sizes):
        nnz = np.add.reduceat(cells.nnz, bounds[:-1], dtype=np.float64)
    else:
        nnz = np.zeros(0)
    return np.minimum(nnz, sizes * float(cells.n_vars))  # both count all genes, and few may be selected
