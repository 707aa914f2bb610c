"""The masks of measured genes in minibatches."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from cellfeed._joinids import IntArray
from cellfeed.errors import PlanError
from cellfeed.plan import budget
from cellfeed.rows.assemble import DenseBuffers
from cellfeed.select.measured import Measured
from cellfeed.transforms import SelectGenes, Transform, columns_after, steps_of


class MeasuredMasks:
    """Makes the masks of the minibatches of one epoch, in memory that is used again.

    Parameters
    ----------
    measured
        The genes that were measured.
    transforms
        The transforms of X in their order, some of them ``None``: those that select columns of X select these of the
        mask. A gene that X has as zeros because the store lacks it was not measured.
    """

    def __init__(self, measured: Measured, transforms: Iterable[Transform | None]) -> None:
        table = torch.from_numpy(measured.table)
        n_vars = table.shape[1]
        for transform in transforms:
            n_vars = columns_after(transform, n_vars)
            for step in steps_of(transform):
                table = step(table) if isinstance(step, SelectGenes) else table
        if table.shape[1] != n_vars:
            raise PlanError(
                f"measured= with a transform that makes {n_vars} columns of the {table.shape[1]} genes of X: it is "
                f"unknown which; select genes by dataset.select_genes(...) or transforms.SelectGenes"
            )
        self._measured = measured.with_table(table.numpy())
        self._buffers = DenseBuffers(keep=budget.MINIBATCHES_HELD)

    def mask(self, positions: IntArray) -> torch.Tensor:
        """Return the mask of the cells at some positions: bool, shape (n_cells, n_columns)."""
        out = self._buffers.borrow((len(positions), self._measured.table.shape[1]), bool)
        return torch.from_numpy(self._measured.mask(positions, out))
