"""What a minibatch has: the tensors of its matrices, and its further content."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch

from cellfeed._joinids import IntArray
from cellfeed.rows.assemble import Assembler
from cellfeed.rows.cell_rows import CellRows
from cellfeed.rows.minibatch import ExtendedMinibatch
from cellfeed.select.selection import Selection
from cellfeed.transforms import Transform, apply


class TensorMaker(Protocol):
    """Makes what minibatches have as X of rows."""

    def tensor(self, rows: CellRows) -> Any:
        """Return a tensor, or tensors, with an entry per row."""

    def close(self) -> None:
        """End the threads."""


class MatrixAssembler(NamedTuple):
    """Makes the tensors of one matrix."""

    assembler: Assembler
    transform: Transform | None
    sparse: bool

    def tensor(self, rows: CellRows) -> torch.Tensor:
        """Return rows as a tensor, transformed."""
        X = self.assembler.sparse_X(rows) if self.sparse else self.assembler.dense_X(rows)
        if self.transform is None:
            return X
        try:
            return apply(self.transform, X)
        except Exception as error:
            if X.device.type != "cpu":
                error.add_note(
                    f"transform got X on device={str(X.device)!r}; if it needs the CPU, give experiment_dataloader "
                    f"device=None, or a data module dataloader_kwargs={{'device': None}}"
                )
            raise

    def close(self) -> None:
        """End the threads."""
        self.assembler.close()


def extended(
    selection: Selection,
    positions: IntArray,
    X: torch.Tensor,
    obs: torch.Tensor,
    further: Sequence[torch.Tensor],
    joinids: torch.Tensor | None,
    mask: torch.Tensor | None,
    measured: torch.Tensor | None,
) -> ExtendedMinibatch:
    """Return the minibatch of the cells at some positions; ``further`` are its matrices beside X."""
    named: dict[str, dict[str, torch.Tensor]] = {"layers": {}, "measurements": {}}
    for matrix, tensor in zip(selection.matrices, further, strict=True):
        named[matrix.kind][matrix.name] = tensor
    values = selection.obs_values
    return ExtendedMinibatch(
        X=X,
        obs=obs,
        layers=named["layers"],
        obsm={name: torch.from_numpy(rows[positions]) for name, rows in selection.obsm.items()},
        obs_values=None if values is None else torch.from_numpy(values[positions]),
        measurements=named["measurements"],
        joinids=joinids,
        mask=mask,
        measured=measured,
    )
