"""What planning needs to know of the selected cells."""

from __future__ import annotations

from typing import Any, Protocol

import numpy.typing as npt

from cellfeed._geometry import ArrayGeometry
from cellfeed._joinids import JoinIds


class Cells(Protocol):
    """Selected cells of an array, and the size of each, if it is known; a ``Selection`` is one."""

    @property
    def joinids(self) -> JoinIds:
        """The selected cells, ascending."""

    @property
    def nnz(self) -> npt.NDArray[Any] | None:
        """Shape (n_obs,): number of stored values of each cell; ``None`` if it is not known."""

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
