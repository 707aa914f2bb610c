"""The size, measurements, layers and columns of an experiment or an AnnData, read from its metadata."""

from __future__ import annotations

import datetime
from typing import Any

from cellfeed.sources.opening import is_anndata
from cellfeed.sources.redact import public_uri
from cellfeed.sources.soma.experiment import open_experiment, retrying
from cellfeed.stats import Meter


def describe(uri: str, context: Any = None, *, retry_deadline_s: float = 120.0) -> dict[str, Any]:
    """Return a description of an experiment as plain values.

    Parameters
    ----------
    uri
        The URI of a SOMA experiment, or the path or URI of an AnnData.
    context
        A ``tiledbsoma.SOMATileDBContext`` to open it with.
    retry_deadline_s
        As for :class:`cellfeed.ExperimentDataset`.

    Returns
    -------
    The URI without secrets, the timestamp, the number of cells, and the columns of obs with their types; for each
    measurement the number of genes, the columns of var, the layers with shape and type, and the names in obsm.

    Raises
    ------
    SelectionError
        If the URI is neither.

    Examples
    --------
    >>> description = describe(cellfeed.datasets.pbmc700())
    >>> description["n_obs"], list(description["measurements"])
    (700, ['RNA'])
    """
    if is_anndata(uri):
        return _describe_anndata(uri)
    with (
        retrying(uri, context, retry_deadline_s, Meter()) as retries,
        open_experiment(uri, context, retries) as experiment,
    ):
        return retries.call(lambda: _describe(experiment))


def _describe_anndata(path: str) -> dict[str, Any]:
    from cellfeed.sources.anndata.describing import describe_files
    from cellfeed.sources.anndata.files import anndata_files

    return {"uri": public_uri(path), "timestamp": None, **describe_files(anndata_files(path))}


def _describe(experiment: Any) -> dict[str, Any]:
    opened = datetime.datetime.fromtimestamp(experiment.tiledb_timestamp_ms / 1000, datetime.UTC)
    return {
        "uri": public_uri(experiment.uri),
        "timestamp": opened.isoformat(timespec="milliseconds"),
        "n_obs": int(experiment.obs.count),
        "obs": _columns(experiment.obs),
        "measurements": {name: _measurement(measurement) for name, measurement in experiment.ms.items()},
    }


def _measurement(measurement: Any) -> dict[str, Any]:
    layers = measurement.X if "X" in measurement else {}
    return {
        "n_vars": int(measurement.var.count),
        "var": _columns(measurement.var),
        "X": {name: f"{type(layer).__name__} {tuple(layer.shape)}" for name, layer in layers.items()},
        "obsm": sorted(measurement.obsm) if "obsm" in measurement else [],
    }


def _columns(frame: Any) -> dict[str, str]:
    """Return the type of each column; for a dictionary, the type of its values."""
    types = {field.name: getattr(field.type, "value_type", field.type) for field in frame.schema}
    return {name: str(kind).removeprefix("large_") for name, kind in types.items()}


def as_text(description: dict[str, Any]) -> str:
    """Return the result of :func:`describe` as text."""
    lines = [
        description["uri"] + (f", as of {description['timestamp']}" if description["timestamp"] else ""),
        f"{description['n_obs']:,} cells; obs: {_listed(description['obs'])}",
    ]
    for name, measurement in description["measurements"].items():
        lines.append(f"measurement {name}: {measurement['n_vars']:,} genes; var: {_listed(measurement['var'])}")
        lines += [f"  X {layer}: {kind}" for layer, kind in measurement["X"].items()]
        lines += [f"  obsm: {', '.join(measurement['obsm'])}"] if measurement["obsm"] else []
    return "\n".join(lines)


def _listed(columns: dict[str, str]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in columns.items()) or "no columns"
