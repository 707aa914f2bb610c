"""Writes embeddings to an experiment."""

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
from cellfeed._joinids import JOINID, IntArray
from cellfeed.errors import SelectionError
from cellfeed.sources.redact import public_uri, redacted, reraise_as, secrets_of
from cellfeed.sources.soma.experiment import config_of, open_experiment

ROWS_PER_TILE = 2048
"""Rows per space tile, as in the X of a Census."""

VALUES_PER_WRITE = 1 << 22
"""Number of values of one write; each takes 20 bytes while it is written."""


def write_to_experiment(
    experiment: Any,
    name: str,
    ids: IntArray,
    rows: npt.NDArray[np.float32],
    *,
    measurement_name: str,
    context: Any,
    overwrite: bool,
) -> str:
    """Write rows of ascending joinids to the ``obsm`` of an experiment; see :func:`cellfeed.write_obsm`."""
    uri, context = _uri_of(experiment, context)
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
