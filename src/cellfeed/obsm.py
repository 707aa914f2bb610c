"""Embeddings into an experiment: the one place that writes to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cellfeed import native
from cellfeed.errors import SelectionError, nearest
from cellfeed.joinids import IntArray, in_order
from cellfeed.redact import public_uri, secrets_of, told_as

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
) -> str:
    """Write an embedding of cells to the ``obsm`` of an experiment.

    It becomes a sparse array, which ``ExperimentAxisQuery.obsm`` and ``to_anndata(obsm_layers=[name])`` read. Cells
    that were not embedded have no values in it: read back, their rows are missing or, in an AnnData, zero.

    Parameters
    ----------
    experiment_uri
        Of an experiment that may be written to. Handles that are open already do not see the embedding.
    name
        A name that ``obsm`` does not hold yet, such as ``"X_scVI"``.
    joinids
        int64, shape (n,): the ``soma_joinid`` of each row, in any order, none twice.
    embeddings
        Floats, shape (n, n_dims), n_dims of at least 1; written as float32, zeros too.
    measurement_name
        The measurement to whose ``obsm`` it is added.
    context
        A ``tiledbsoma.SOMATileDBContext`` to open it with.

    Returns
    -------
    The URI of the new array.

    Raises
    ------
    SelectionError
        If the experiment or measurement cannot be opened, ``obsm`` has the name, or the rows do not fit obs.

    Examples
    --------
    >>> import tempfile, tiledbsoma, cellfeed.demo
    >>> uri = cellfeed.demo.write_experiment(tempfile.mkdtemp() + "/cells.soma")
    >>> _ = cellfeed.write_obsm(uri, "X_mine", joinids=[0, 2], embeddings=[[0.5, 1.0], [2.0, 4.0]])
    >>> with tiledbsoma.open(uri) as experiment:
    ...     experiment.ms["RNA"].obsm["X_mine"].nnz
    4
    """
    import tiledbsoma as soma

    ids, rows = _check_rows(joinids, embeddings)
    shown, secrets = public_uri(experiment_uri), secrets_of(experiment_uri, _settings_of(context))
    with told_as(SelectionError, f"experiment_uri={shown!r} cannot be opened", secrets):
        opened = soma.open(str(experiment_uri), context=native.safe_context(context))
    with opened as experiment:
        if not isinstance(experiment, soma.Experiment) or measurement_name not in experiment.ms:
            known = experiment.ms if isinstance(experiment, soma.Experiment) else []
            raise SelectionError(
                f"measurement_name={measurement_name!r} is not in {shown!r}; {nearest(measurement_name, known)}"
            )
        measurement = experiment.ms[measurement_name]
        has_obsm = "obsm" in measurement
        if has_obsm and name in measurement.obsm:
            raise SelectionError(
                f"name={name!r} is in obsm already; give another name, or delete it first "
                f'(tiledbsoma.open({public_uri(measurement.obsm.uri)!r}, "d"))'
            )
        n_rows = _count_rows(experiment.obs, ids)
        uri = measurement.obsm.uri if has_obsm else measurement.uri
    with told_as(SelectionError, f"experiment_uri={shown!r} cannot be written to", secrets):
        array_uri = _create(uri, name, (n_rows, rows.shape[1]), has_obsm=has_obsm, context=context)
        _write(array_uri, ids, rows, context)
    return array_uri


def _settings_of(context: Any) -> dict[str, str] | None:
    return None if context is None else native.user_config(context)


def _check_rows(joinids: Any, embeddings: Any) -> tuple[IntArray, npt.NDArray[np.float32]]:
    """Return joinids and rows in ascending order."""
    ids, rows = np.asarray(joinids), np.asarray(embeddings)
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
    return ids[order], rows[order].astype(np.float32)


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


def _create(uri: str, name: str, shape: tuple[int, int], *, has_obsm: bool, context: Any) -> str:
    import tiledbsoma as soma

    tiles = {"soma_dim_0": {"tile": min(ROWS_PER_TILE, shape[0])}, "soma_dim_1": {"tile": shape[1]}}
    kind = soma.Collection if has_obsm else soma.Measurement
    with kind.open(uri, "w", context=context) as parent:
        obsm = parent if has_obsm else parent.add_new_collection("obsm", soma.Collection)
        array = obsm.add_new_sparse_ndarray(
            name, type=pa.float32(), shape=shape, platform_config={"tiledb": {"create": {"dims": tiles}}}
        )
        array.close()
        return str(array.uri)


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
