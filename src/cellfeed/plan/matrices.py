"""What one matrix of the minibatches costs in memory: X, a layer, or the X of a further measurement."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from cellfeed.plan import budget
from cellfeed.plan.budget import ReadBudget
from cellfeed.plan.cells import Cells, Chunks
from cellfeed.plan.settings import Settings


@dataclass(frozen=True, eq=False)
class Matrix:
    """The values of one matrix in the pool and in minibatches.

    Attributes
    ----------
    cells
        The selected cells, with the geometry and the genes of the matrix.
    settings
        How minibatches are made.
    scale
        Values per value of ``cells.nnz``, which counts those of X: a layer may have more or fewer.
    exact
        Whether integers in the pool have the type of the layer: a copy is written of them.
    """

    cells: Cells
    settings: Settings
    scale: float = 1.0
    exact: bool = False

    @classmethod
    def further(cls, cells: Cells, X: Cells, settings: Settings) -> Matrix:
        """Return a matrix beside X, whose nnz per cell is in proportion to that of X if ``cells.nnz`` is known."""
        scale = 1.0 if cells.nnz is None else cells.geometry.nnz_per_row / max(X.geometry.nnz_per_row, 1e-12)
        return cls(cells, settings, scale)

    @property
    def pool_dtype(self) -> np.dtype[Any]:
        """Type of values in the pool that do not fit in a small integer type."""
        stored = np.dtype(self.cells.geometry.dtype)
        if self.settings.X_dtype == "stored" or stored.itemsize < 4 or (self.exact and stored.kind in "iu"):
            return stored
        return np.dtype(np.float32)

    @property
    def _tensor_bytes(self) -> int:
        """Bytes per value in a minibatch."""
        if self.settings.X_dtype in ("float16", "bfloat16"):
            return 2
        return self.pool_dtype.itemsize if self.settings.X_dtype == "stored" else 4

    @property
    def value_bytes(self) -> int:
        """Bytes per value in the pool: a gene and a value."""
        return (2 if self.cells.n_vars <= 1 << 16 else 4) + self.pool_dtype.itemsize

    def chunk_nnz(self, chunks: Chunks) -> npt.NDArray[np.float64]:
        """Return the nnz of each chunk: float64, shape (n_chunks,)."""
        nnz = chunks.nnz(self.cells)
        if self.scale == 1:
            return nnz
        return np.minimum(nnz * self.scale, np.diff(chunks.bounds) * float(self.cells.n_vars))

    def chunk_bytes(self, chunks: Chunks) -> npt.NDArray[np.float64]:
        """Return the bytes of each chunk in the pool: float64, shape (n_chunks,)."""
        return self.chunk_nnz(chunks) * self.value_bytes + np.diff(chunks.bounds) * float(budget.BYTES_PER_CELL)

    @cached_property
    def row_block_nnz(self) -> tuple[float, float]:
        """Total nnz of the selected cells, and nnz per cell of the row-block in which it is highest."""
        bounds = self.cells.joinids.row_block_bounds(self.cells.geometry.row_extent)
        nnz = self.chunk_nnz(Chunks(bounds))
        return float(nnz.sum()), float((nnz / np.maximum(np.diff(bounds), 1)).max(initial=0.0))

    def bytes_per_cell(self, chunks: Chunks) -> int:
        """Return the mean bytes of a cell in a minibatch."""
        if self.settings.return_sparse_X:
            nnz = self.row_block_nnz[0] if chunks.cells is None else float(self.chunk_nnz(chunks).sum())
            return int(nnz / max(chunks.n_cells, 1) * (4 + self._tensor_bytes))
        return self.cells.n_vars * self._tensor_bytes

    def reads(self) -> ReadBudget:
        """Return the cost of reads of the matrix, without a limit."""
        nnz, max_nnz_per_row = self.row_block_nnz
        return ReadBudget(
            n_bytes=0,
            geometry=self.cells.geometry,
            is_remote=self.cells.is_remote,
            value_bytes=self.value_bytes,
            nnz=nnz,
            max_nnz_per_row=max_nnz_per_row,
        )
