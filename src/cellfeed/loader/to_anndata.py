"""Cells of a dataset in memory, as an AnnData; see :meth:`cellfeed.ExperimentDataset.to_anndata`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp
import torch

from cellfeed._joinids import IntArray, in_order
from cellfeed.errors import SelectionError
from cellfeed.loader.engine import Engine
from cellfeed.plan.settings import IN_ORDER
from cellfeed.rows.minibatch import array_of
from cellfeed.select.gene_names import name_columns
from cellfeed.select.selection import Selection

if TYPE_CHECKING:
    from anndata import AnnData

CELLS_PER_STEP = 1024


def to_anndata(
    engine: Engine, joinids: Any, *, X: bool, obs_columns: Sequence[str] | None, obsm: Mapping[str, Any] | None
) -> AnnData:
    """Return cells of an engine as an AnnData; see :meth:`cellfeed.ExperimentDataset.to_anndata`."""
    from anndata import AnnData

    from cellfeed.sources.anndata.copies.written_tables import check_columns, obs_table

    if obs_columns is not None:
        check_columns(engine.selection, obs_columns)
    positions = _positions(engine.selection, joinids)
    embeddings = {name: _embedding(name, rows, len(positions)) for name, rows in (obsm or {}).items()}
    own = {name: rows[positions] for name, rows in engine.selection.obsm.items()}
    return AnnData(
        obs=obs_table(engine.selection, positions, obs_columns),
        var=_var(engine.selection),
        obsm={**own, **embeddings},
        **(_matrices(engine, positions) if X else {}),
    )


def _positions(selection: Selection, joinids: Any) -> IntArray:
    """Return the positions of the cells with some joinids, in their order; by default all positions."""
    if joinids is None:
        return np.arange(selection.n_obs)
    wanted = array_of(joinids)
    if wanted.ndim != 1 or not np.issubdtype(wanted.dtype, np.integer):
        raise SelectionError(
            f"joinids of type {wanted.dtype} and shape {wanted.shape} must be one or more integers in one dimension; "
            f"give those that inference_dataloader yields, or values of dataset.obs_joinids"
        )
    positions = selection.find(wanted.astype(np.int64))
    if (positions < 0).any():
        raise SelectionError(
            f"joinids: {wanted[positions < 0][0]} is not a cell of this dataset; give values of dataset.obs_joinids"
        )
    _, repeated = in_order(wanted)
    if len(repeated):
        raise SelectionError(
            f"joinids: {repeated[0]} comes twice, but a cell is one row of an AnnData; give numpy.unique(joinids)"
        )
    return positions


def _embedding(name: str, rows: Any, n_obs: int) -> npt.NDArray[Any]:
    values = array_of(rows)
    if values.ndim != 2 or len(values) != n_obs:
        raise SelectionError(
            f"obsm: {name!r} has the shape {values.shape}, and must be ({n_obs}, n_dims), a row per cell in the order "
            f"of joinids; give the joinids of its rows, to_anndata(joinids, obsm=...)"
        )
    return values


def _var(selection: Selection) -> pd.DataFrame:
    """Return var of the columns of X; a gene that the store lacks has a name and no values."""
    from cellfeed.sources.anndata.copies.written_tables import var_of

    var, transform = var_of(selection), selection.column_transform
    if transform is None:
        return var
    has = transform.source >= 0
    var = var.iloc[np.maximum(transform.source, 0)]
    names = np.where(has, var.index.to_numpy(object), name_columns(selection))
    chosen: pd.DataFrame = var.where(np.broadcast_to(has[:, None], var.shape))
    return chosen.set_axis(pd.Index(names, name=var.index.name))


def _matrices(engine: Engine, positions: IntArray) -> dict[str, Any]:
    """Read X and the layers of cells at some positions."""
    ascending = np.sort(positions)
    ordered = engine.derive(
        selection=engine.selection.take(ascending), **IN_ORDER, rank_remainder="uneven", rank=0, world_size=1,
        return_sparse_X=True, X_dtype="stored", transform=None, batch_size=CELLS_PER_STEP,
    )  # fmt: skip
    pieces: dict[str, list[sp.csr_matrix]] = {"X": []}
    minibatches: Iterator[Any] = iter(ordered.minibatches())
    for minibatch in minibatches:
        layers = getattr(minibatch, "layers", None) or {}
        for name, tensor in {"X": minibatch.X, **layers}.items():
            pieces.setdefault(name, []).append(_csr(tensor))
    rows = np.searchsorted(ascending, positions)
    X, *further = (sp.vstack(parts, format="csr")[rows] for parts in pieces.values())
    return {"X": X, "layers": dict(zip(list(pieces)[1:], further, strict=True))}


def _csr(X: torch.Tensor) -> sp.csr_matrix:
    arrays = (X.values().numpy(), X.col_indices().numpy(), X.crow_indices().numpy())
    return sp.csr_matrix(arrays, shape=tuple(X.shape))
