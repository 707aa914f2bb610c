"""Writes embeddings of cells to the store that holds them; the rest of cellfeed only reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cellfeed._joinids import IntArray, in_order
from cellfeed.errors import SelectionError
from cellfeed.rows.minibatch import array_of
from cellfeed.sources.opening import MEASUREMENT, is_anndata
from cellfeed.sources.soma.obsm import write_to_experiment


def write_obsm(
    experiment: Any,
    name: str,
    joinids: Any,
    embeddings: Any,
    *,
    measurement_name: str = "RNA",
    context: Any = None,
    overwrite: bool = False,
) -> str:
    """Write an embedding of cells to the ``obsm`` of an experiment, or of an AnnData in zarr.

    In an experiment the embedding is a sparse array, which ``ExperimentAxisQuery.obsm`` and
    ``to_anndata(obsm_layers=[name])`` read. Cells without a row have no values in it: when it is read, their rows are
    missing or, in an AnnData, zero. The name is added to ``obsm`` after all values are written: if writing fails,
    ``obsm`` does not change. In an AnnData, or in each part of a collection, it is a dense array, whose rows are NaN
    for cells without values.

    Parameters
    ----------
    experiment
        URI or path of an experiment; path of an AnnData in zarr or of a local copy; or a ``tiledbsoma.Experiment``,
        open for reading or for writing, or closed. Of the latter the URI and the context are used. It stays as it is:
        open handles do not see the embedding, and the embedding is not written at their timestamp but now, or at the
        timestamp of the context if that has one.
    name
        A name such as ``"X_scVI"``.
    joinids
        int64, shape (n,): the ``soma_joinid`` of each row, in any order, without duplicates. In an AnnData these are
        the numbers of rows, unless obs has a column of this name.
    embeddings
        Numbers, shape (n, n_dims), n_dims of at least 1: an array, or a tensor as a model returns it. They are written
        as float32, zeros too. All must be finite as float32.
    measurement_name
        The measurement whose ``obsm`` gets the embedding; an AnnData has only ``"RNA"``.
    context
        A ``tiledbsoma.SOMATileDBContext`` to open a URI or path with.
    overwrite
        Whether to replace an array of the same name, which may have other cells and dimensions. In an experiment its
        files are kept, and readers at an earlier timestamp read it.

    Returns
    -------
    The URI of the new array; of an AnnData, its own path.

    Raises
    ------
    SelectionError
        If the experiment or measurement cannot be opened, ``obsm`` has the name and ``overwrite`` is False, a joinid
        is not in obs, or an embedding is not finite as float32.

    Examples
    --------
    >>> import tempfile, tiledbsoma
    >>> uri = cellfeed.datasets.pbmc700(tempfile.mkdtemp() + "/cells.soma")
    >>> _ = cellfeed.write_obsm(uri, "X_mine", joinids=[0, 2], embeddings=[[0.5, 1.0], [2.0, 4.0]])
    >>> with tiledbsoma.open(uri) as experiment:
    ...     experiment.ms["RNA"].obsm["X_mine"].nnz
    4
    """
    _check_name(name, overwrite)
    ids, rows = _check_rows(joinids, embeddings)
    if not is_anndata(experiment):
        options = {"measurement_name": measurement_name, "context": context, "overwrite": overwrite}
        return write_to_experiment(experiment, name, ids, rows, **options)
    if measurement_name != MEASUREMENT or context is not None:
        raise SelectionError("measurement_name= and context= are of an experiment, and this is an AnnData; omit them")
    from cellfeed.sources.anndata.obsm import write_to_anndata

    return write_to_anndata(experiment, name, ids, rows, overwrite=overwrite)


def _check_name(name: Any, overwrite: Any) -> None:
    if not isinstance(name, str) or not name:
        raise SelectionError(f"name={name!r} must be text, such as 'X_scVI'")
    if not isinstance(overwrite, bool):
        raise SelectionError(f"overwrite={overwrite!r} must be True or False")


def _check_rows(joinids: Any, embeddings: Any) -> tuple[IntArray, npt.NDArray[np.float32]]:
    """Return joinids and rows in ascending order."""
    ids, rows = array_of(joinids), array_of(embeddings)
    if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
        raise SelectionError(f"joinids must be integers of shape (n,); got {ids.dtype} of shape {ids.shape}")
    if rows.ndim != 2 or len(rows) != len(ids) or rows.shape[1] == 0 or rows.dtype.kind not in "iuf":
        raise SelectionError(
            f"embeddings must be numbers of shape ({len(ids)}, n_dims), a row per joinid; got {rows.dtype} of shape "
            f"{rows.shape}"
        )
    ids = ids.astype(np.int64)
    order, repeated = in_order(ids)
    if len(repeated):
        raise SelectionError(f"joinids holds {repeated[0]} more than once; give each cell one row")
    ids = ids[order]
    with np.errstate(over="ignore"):
        narrow = rows[order].astype(np.float32)
    lost = ~np.isfinite(narrow).all(axis=1)
    if lost.any():
        first = int(np.flatnonzero(lost)[0])
        raise SelectionError(
            f"embeddings: the row of joinid {ids[first]} is {_shown(rows[order][first])}, which is not finite as "
            f"float32 ({int(lost.sum())} of {len(ids)} rows are not); leave such cells out of joinids and embeddings"
        )
    return ids, narrow


def _shown(row: npt.NDArray[Any]) -> str:
    return np.array2string(row, threshold=6, edgeitems=2)
