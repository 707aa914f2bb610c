"""Embeddings into an experiment: the one place that writes to it."""

from __future__ import annotations

import uuid
from os import PathLike
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cellfeed._checks import suggest
from cellfeed._joinids import IntArray, in_order
from cellfeed.errors import SelectionError
from cellfeed.rows.minibatch import array_of
from cellfeed.sources.redact import public_uri, reraise_as, secrets_of
from cellfeed.sources.soma import tiledb_private
from cellfeed.sources.soma.experiment import open_uri

ROWS_PER_TILE = 2048
"""Rows of a space tile, as in the X of a Census."""

VALUES_PER_WRITE = 1 << 22
"""Values written at once: in flight each takes 20 bytes."""


def write_obsm(
    experiment_uri: Any,
    name: str,
    joinids: Any,
    embeddings: Any,
    *,
    measurement_name: str = "RNA",
    context: Any = None,
    overwrite: bool = False,
) -> str:
    """Write an embedding of cells to the ``obsm`` of an experiment.

    It becomes a sparse array, which ``ExperimentAxisQuery.obsm`` and ``to_anndata(obsm_layers=[name])`` read. Cells
    that were not embedded have no values in it: read back, their rows are missing or, in an AnnData, zero. ``obsm``
    has the name once all values are written: if writing fails, ``obsm`` is as it was.

    Parameters
    ----------
    experiment_uri
        URI or path of an experiment that may be written to. Handles that are open already do not see the embedding.
    name
        A name such as ``"X_scVI"``.
    joinids
        int64, shape (n,): the ``soma_joinid`` of each row, in any order, none twice.
    embeddings
        Numbers, shape (n, n_dims), n_dims of at least 1: an array, or a tensor as a model returns it. They are written
        as float32, zeros too. All must be finite as float32.
    measurement_name
        The measurement to whose ``obsm`` it is added.
    context
        A ``tiledbsoma.SOMATileDBContext`` to open it with.
    overwrite
        Whether an array that has the name is replaced. It may have other cells and dimensions. Its files stay, and
        readers at an earlier timestamp read it.

    Returns
    -------
    The URI of the new array.

    Raises
    ------
    SelectionError
        If the experiment or measurement cannot be opened, ``obsm`` has the name and ``overwrite`` is False, the rows
        do not fit obs, or an embedding is not finite as float32.

    Examples
    --------
    >>> import tempfile, tiledbsoma
    >>> uri = cellfeed.datasets.pbmc700(tempfile.mkdtemp() + "/cells.soma")
    >>> _ = cellfeed.write_obsm(uri, "X_mine", joinids=[0, 2], embeddings=[[0.5, 1.0], [2.0, 4.0]])
    >>> with tiledbsoma.open(uri) as experiment:
    ...     experiment.ms["RNA"].obsm["X_mine"].nnz
    4
    """
    import tiledbsoma as soma

    _check_target(experiment_uri, name, overwrite)
    ids, rows = _check_rows(joinids, embeddings)
    shown, secrets = public_uri(experiment_uri), secrets_of(experiment_uri, _settings_of(context))
    with open_uri("experiment_uri", experiment_uri, context) as experiment:
        if not isinstance(experiment, soma.Experiment) or measurement_name not in experiment.ms:
            known = experiment.ms if isinstance(experiment, soma.Experiment) else []
            raise SelectionError(
                f"measurement_name={measurement_name!r} is not in {shown!r}; {suggest(measurement_name, known)}"
            )
        measurement = experiment.ms[measurement_name]
        has_obsm = "obsm" in measurement
        has_name = has_obsm and name in measurement.obsm
        if has_name and not overwrite:
            raise SelectionError(
                f"name={name!r} is in obsm already; give another name, or overwrite=True to replace it"
            )
        n_rows = _count_rows(experiment.obs, ids)
        uri = measurement.obsm.uri if has_obsm else measurement.uri
    with reraise_as(SelectionError, f"experiment_uri={shown!r} cannot be written to", secrets):
        if not has_obsm:
            uri = _add_obsm(uri, context)
        array_uri = _create(uri, name, (n_rows, rows.shape[1]), context)
        _write(array_uri, ids, rows, context)
        _set(uri, name, array_uri, replaces=has_name, context=context)
    return array_uri


def _check_target(experiment_uri: Any, name: Any, overwrite: Any) -> None:
    import tiledbsoma as soma

    if isinstance(experiment_uri, soma.Experiment):
        raise SelectionError(
            f"experiment_uri= is an open Experiment; give its URI: "
            f"write_obsm({public_uri(experiment_uri.uri)!r}, {name!r}, ...)"
        )
    if not isinstance(experiment_uri, (str, PathLike)):
        raise SelectionError(
            f"experiment_uri={public_uri(experiment_uri)} must be the URI or path of an experiment, as text"
        )
    if not isinstance(name, str) or not name:
        raise SelectionError(f"name={name!r} must be text, such as 'X_scVI'")
    if not isinstance(overwrite, bool):
        raise SelectionError(f"overwrite={overwrite!r} must be True or False")


def _settings_of(context: Any) -> dict[str, str] | None:
    return None if context is None else tiledb_private.user_config(context)


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
    order, twice = in_order(ids)
    if len(twice):
        raise SelectionError(f"joinids holds {twice[0]} more than once; give each cell one row")
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


def _count_rows(obs: Any, ids: IntArray) -> int:
    """Return the rows that an array over all of obs has; each id must be there."""
    largest, found = -1, np.zeros(len(ids), bool)
    for table in obs.read(column_names=["soma_joinid"]):
        page = table.column("soma_joinid").to_numpy()
        if len(page):
            low, high = np.searchsorted(ids, [page.min(), page.max() + 1])  # a page is a small part of a large obs
            found[low:high] |= np.isin(ids[low:high], page)
            largest = max(largest, int(page.max()))
    if not found.all():
        lost = ids[~found]
        raise SelectionError(f"joinids: obs has no soma_joinid {lost[0]} ({len(lost)} of {len(ids)} are not in it)")
    return largest + 1


def _add_obsm(measurement_uri: str, context: Any) -> str:
    import tiledbsoma as soma

    with soma.Measurement.open(measurement_uri, "w", context=context) as measurement:
        return str(measurement.add_new_collection("obsm", soma.Collection).uri)


def _create(obsm_uri: str, name: str, shape: tuple[int, int], context: Any) -> str:
    """Create an array in the folder of obsm, of which obsm itself does not know yet."""
    import tiledbsoma as soma

    uri = f"{obsm_uri.rstrip('/')}/{quote(name, safe='')}"
    if soma.SparseNDArray.exists(uri, context=context):  # under the name, or left by a process that was killed
        uri = f"{uri}_{uuid.uuid4().hex[:8]}"
    tiles = {"soma_dim_0": {"tile": min(ROWS_PER_TILE, shape[0])}, "soma_dim_1": {"tile": shape[1]}}
    created = soma.SparseNDArray.create(
        uri, type=pa.float32(), shape=shape, platform_config={"tiledb": {"create": {"dims": tiles}}}, context=context
    )
    created.close()
    return uri


def _set(obsm_uri: str, name: str, array_uri: str, *, replaces: bool, context: Any) -> None:
    """Let obsm have an array by a name."""
    import tiledbsoma as soma

    if replaces:
        with soma.Collection.open(obsm_uri, "d", context=context) as obsm:
            del obsm[name]
    with (
        soma.Collection.open(obsm_uri, "w", context=context) as obsm,
        soma.SparseNDArray.open(array_uri, context=context) as array,
    ):
        obsm.set(name, array)


def _write(uri: str, ids: IntArray, rows: npt.NDArray[np.float32], context: Any) -> None:
    import tiledbsoma as soma

    n_dims = rows.shape[1]
    step = max(VALUES_PER_WRITE // n_dims, 1)
    with soma.SparseNDArray.open(uri, "w", context=context) as array:
        for start in range(0, len(ids), step):
            part = slice(start, start + step)
            array.write(
                pa.table(
                    {
                        "soma_dim_0": np.repeat(ids[part], n_dims),
                        "soma_dim_1": np.tile(np.arange(n_dims), len(ids[part])),
                        "soma_data": rows[part].ravel(),
                    }
                )
            )
