"""Puts the further content of a minibatch together."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cellfeed._joinids import IntArray
from cellfeed.rows.minibatch import ExtendedMinibatch
from cellfeed.select.selection import Selection


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
