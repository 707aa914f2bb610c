"""Writes embeddings to an experiment; the rest of cellfeed only reads."""

from __future__ import annotations

import time
import uuid
from os import PathLike
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cellfeed._checks import shortened, suggest
from cellfeed._joinids import JOINID, IntArray, in_order
from cellfeed.errors import SelectionError
from cellfeed.rows.minibatch import array_of
from cellfeed.sources.redact import public_uri, redacted, reraise_as, secrets_of
from cellfeed.sources.soma.experiment import config_of, open_experiment

ROWS_PER_TILE = 2048
"""Rows per space tile, as in the X of a Census."""

VALUES_PER_WRITE = 1 << 22
"""Number of values of one write; each takes 20 bytes while it is written."""


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
    """Write an embedding of cells to the ``obsm`` of an experiment.

    The embedding is a sparse array, which ``ExperimentAxisQuery.obsm`` and ``to_anndata(obsm_layers=[name])`` read.
    Cells without a row have no values in it: when it is read, their rows are missing or, in an AnnData, zero. The name
    is added to ``obsm`` after all values are written: if writing fails, ``obsm`` does not change.

    Parameters
    ----------
    experiment
        URI or path of an experiment, or a ``tiledbsoma.Experiment``, open for reading or for writing, or closed. Of
        the latter the URI and the context are used. It stays as it is: open handles do not see the embedding, and the
        embedding is not written at their timestamp but now, or at the timestamp of the context if that has one.
    name
        A name such as ``"X_scVI"``.
    joinids
        int64, shape (n,): the ``soma_joinid`` of each row, in any order, without duplicates.
    embeddings
        Numbers, shape (n, n_dims), n_dims of at least 1: an array, or a tensor as a model returns it. They are written
        as float32, zeros too. All must be finite as float32.
    measurement_name
        The measurement whose ``obsm`` gets the embedding.
    context
        A ``tiledbsoma.SOMATileDBContext`` to open a URI or path with.
    overwrite
        Whether to replace an array of the same name, which may have other cells and dimensions. Its files are kept,
        and readers at an earlier timestamp read it.

    Returns
    -------
    The URI of the new array.

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
    uri, context = _uri_of(experiment, context)
    ids, rows = _check_rows(joinids, embeddings)
    shown, secrets = public_uri(uri), secrets_of(uri, config_of(context))
    with open_experiment(uri, context) as opened:
        if measurement_name not in opened.ms:
            raise SelectionError(
                f"measurement_name={measurement_name!r} is not in {shown!r}; {suggest(measurement_name, opened.ms)}"
            )
        measurement = opened.ms[measurement_name]
        has_obsm = "obsm" in measurement
        has_name = has_obsm and name in measurement.obsm
        if has_name and not overwrite:
            raise SelectionError(
                f"name={name!r} is in obsm already; give another name, or overwrite=True to replace it"
            )
        n_rows = _count_rows(opened.obs, ids)
        target = measurement.obsm.uri if has_obsm else measurement.uri
    with reraise_as(SelectionError, f"experiment={shown!r} cannot be written to", secrets):
        if not has_obsm:
            target = _add_obsm(target, context)
        array_uri = _create(target, name, (n_rows, rows.shape[1]), context)
        _write(array_uri, ids, rows, context)
        _set(target, name, array_uri, replaces=has_name, context=context)
    return array_uri


def _check_name(name: Any, overwrite: Any) -> None:
    if not isinstance(name, str) or not name:
        raise SelectionError(f"name={name!r} must be text, such as 'X_scVI'")
    if not isinstance(overwrite, bool):
        raise SelectionError(f"overwrite={overwrite!r} must be True or False")


def _uri_of(experiment: Any, context: Any) -> tuple[str | PathLike[str], Any]:
    """Return the URI or path of an experiment, and the context to open it with."""
    import tiledbsoma as soma

    if isinstance(experiment, (str, PathLike)):
        return experiment, context
    if not isinstance(experiment, soma.Experiment):
        raise SelectionError(
            f"experiment={shortened(redacted(repr(experiment)))} must be a tiledbsoma.Experiment, or the URI or path "
            f"of one"
        )
    if context is not None:
        raise SelectionError("context= goes with a URI; a tiledbsoma.Experiment brings its own")
    return experiment.uri, experiment.context


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


def _count_rows(obs: Any, ids: IntArray) -> int:
    """Return the number of rows of an array over all of obs; all ids must be in obs."""
    largest, is_found = -1, np.zeros(len(ids), bool)
    for table in obs.read(column_names=[JOINID]):
        page = table.column(JOINID).to_numpy()
        if len(page):
            low, high = np.searchsorted(ids, [page.min(), page.max() + 1])  # compares with the ids of this page only
            is_found[low:high] |= np.isin(ids[low:high], page)
            largest = max(largest, int(page.max()))
    if not is_found.all():
        lost = ids[~is_found]
        raise SelectionError(f"joinids: obs has no soma_joinid {lost[0]} ({len(lost)} of {len(ids)} are not in it)")
    return largest + 1


def _add_obsm(measurement_uri: str, context: Any) -> str:
    import tiledbsoma as soma

    with soma.Measurement.open(measurement_uri, "w", context=context) as measurement:
        return str(measurement.add_new_collection("obsm", soma.Collection).uri)


def _create(obsm_uri: str, name: str, shape: tuple[int, int], context: Any) -> str:
    """Create an array in the folder of obsm, without adding it to obsm."""
    import tiledbsoma as soma

    uri = f"{obsm_uri.rstrip('/')}/{quote(name, safe='')}"
    if soma.SparseNDArray.exists(uri, context=context):  # in use, or left by a process that was killed
        uri = f"{uri}_{uuid.uuid4().hex[:8]}"
    tiles = {"soma_dim_0": {"tile": min(ROWS_PER_TILE, shape[0])}, "soma_dim_1": {"tile": shape[1]}}
    created = soma.SparseNDArray.create(
        uri, type=pa.float32(), shape=shape, platform_config={"tiledb": {"create": {"dims": tiles}}}, context=context
    )
    created.close()
    return uri


def _set(obsm_uri: str, name: str, array_uri: str, *, replaces: bool, context: Any) -> None:
    """Add an array to obsm under a name."""
    import tiledbsoma as soma

    if replaces:
        _await_next_millisecond()
        with soma.Collection.open(obsm_uri, "d", context=context) as obsm:
            del obsm[name]
        _await_next_millisecond()
    with (
        soma.Collection.open(obsm_uri, "w", context=context) as obsm,
        soma.SparseNDArray.open(array_uri, context=context) as array,
    ):
        obsm.set(name, array)


def _await_next_millisecond() -> None:
    """Wait for the next millisecond of the clock: TileDB does not order changes of a group within one."""
    now_ms = time.time_ns() // 10**6
    while time.time_ns() // 10**6 == now_ms:
        time.sleep(1e-4)


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
