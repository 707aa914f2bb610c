"""Makes a :class:`Selection` of an experiment and a query: reads obs and var once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from cellfeed._checks import check_name, suggest
from cellfeed._geometry import ArrayGeometry
from cellfeed._joinids import IntArray, JoinIds
from cellfeed.errors import SelectionError
from cellfeed.select.content import NOTHING_MORE, Content
from cellfeed.select.encoders import Encoder
from cellfeed.select.filter_check import fit_query
from cellfeed.select.obs_columns import ObsColumns
from cellfeed.select.row_figures import columns_of, figures_of
from cellfeed.select.selection import FurtherMatrix, Selection
from cellfeed.sources.redact import public_uri, secrets_of
from cellfeed.sources.retry import NO_RETRY, Retries
from cellfeed.sources.soma import tiledb_private
from cellfeed.sources.soma.address import ArrayAddress, is_remote
from cellfeed.sources.soma.axis_query import as_axis_query
from cellfeed.sources.soma.embeddings import read_obsm
from cellfeed.sources.soma.empty_query import check_not_empty
from cellfeed.sources.soma.experiment import check_experiment, reading
from cellfeed.sources.soma.identity import read_array_id
from cellfeed.sources.soma.layer import SomaLayer
from cellfeed.sources.soma.tables import read_frame
from cellfeed.sources.soma.tiles.index import TileLayout
from cellfeed.sources.source import Source


def make_axis_query(
    experiment: Any, measurement_name: str, obs_query: Any, var_query: Any, retries: Retries = NO_RETRY
) -> Any:
    """Return a query of an experiment, or raise an error if the experiment lacks a part of it."""
    queries = as_axis_query("obs_query", obs_query), as_axis_query("var_query", var_query)
    check_name("measurement_name", measurement_name)
    with reading(experiment):
        measurements = retries.call(lambda: list(experiment.ms))
        if measurement_name not in measurements:
            raise SelectionError(
                f"measurement_name={measurement_name!r} is not in the experiment; "
                f"{suggest(measurement_name, measurements)}"
            )
        return retries.call(partial(_fit, experiment, measurement_name, *queries))


def _fit(experiment: Any, measurement_name: str, obs_query: Any, var_query: Any) -> Any:
    """Return a query whose value filters fit the columns of obs and var."""
    var = experiment.ms[measurement_name].var
    return experiment.axis_query(
        measurement_name,
        obs_query=fit_query("obs_query", obs_query, experiment.obs, "obs"),
        var_query=fit_query("var_query", var_query, var, "var"),
    )


def fit_axis_query(axis_query: Any, experiment: Any, retries: Retries = NO_RETRY) -> Any:
    """Return a query of an experiment with the parts of another query, checked as in :func:`make_axis_query`.

    If the parts are unknown, the other query itself is returned.
    """
    parts = tiledb_private.parts_of(axis_query)
    if parts is None:
        return axis_query
    return make_axis_query(experiment, axis_query.measurement_name, *parts, retries)


def is_axis_query(candidate: Any) -> bool:
    """Whether an object is, or behaves like, a ``tiledbsoma.ExperimentAxisQuery``."""
    return all(hasattr(candidate, name) for name in ("experiment", "measurement_name", "obs"))


def select(
    axis_query: Any,
    X_name: str,
    obs_column_names: Sequence[str],
    encoders: Sequence[Encoder] | None,
    retries: Retries = NO_RETRY,
    *,
    content: Content = NOTHING_MORE,
    allow_empty: bool = False,
) -> Selection:
    """Read the selected cells and genes, and encode the columns of obs.

    Raises
    ------
    SelectionError
        If the query selects nothing and ``allow_empty`` is False, or if obs, var or X cannot be read.
    """
    experiment = check_experiment(axis_query.experiment, "the query's experiment")
    check_name("X_name", X_name)
    columns = ObsColumns.from_arguments(obs_column_names, encoders)
    with reading(experiment):
        selection, frame = retries.call(lambda: _read(axis_query, X_name, columns, content, retries.deadline_s))
        if not allow_empty:
            retries.call(partial(check_not_empty, axis_query, selection.n_obs, selection.n_vars))
    return columns.encode(selection, frame)


def _read(
    axis_query: Any, X_name: str, obs_columns: ObsColumns, content: Content, retry_deadline_s: float
) -> tuple[Selection, pd.DataFrame]:
    """Return the selection without encoders and codes, and the columns of obs that the encoders need."""
    experiment = axis_query.experiment
    measurement = experiment.ms[axis_query.measurement_name]
    array = _layer(measurement, X_name, f"X_name={X_name!r}")
    known = experiment.obs.schema.names
    columns = [*obs_columns.needed(known), *content.needed(known)]
    config = tiledb_private.user_config(experiment.context)
    secrets = secrets_of(experiment.uri, config)

    figures = columns_of(X_name, known, is_remote=is_remote(experiment.obs.uri))
    joinids, frame = read_frame(axis_query.obs, list(dict.fromkeys([*columns, *figures])), "obs_query", secrets)
    nnz, raw_sum, raw_squares = figures_of(frame[figures])
    var_joinids, _ = read_frame(axis_query.var, [], "var_query", secrets)
    n_genes = len(var_joinids) if len(var_joinids) == array.shape[1] else measurement.var.count
    obs_joinids = JoinIds.from_sorted(joinids)
    _check_within(array, joinids, var_joinids)

    def address_of(array: Any) -> ArrayAddress:
        return ArrayAddress(array.uri, array.tiledb_timestamp_ms, config, retry_deadline_s)

    def source_of(array: Any, var: Any) -> Source:
        X, obs, own_var = (address_of(opened) for opened in (array, experiment.obs, var))
        return SomaLayer(X, obs, own_var, *_layout_of(array), identity=read_array_id(X))

    selection = Selection(
        experiment_uri=public_uri(experiment.uri),
        measurement_name=axis_query.measurement_name,
        X_name=X_name,
        source=source_of(array, measurement.var),
        joinids=obs_joinids,
        var_joinids=JoinIds.from_sorted(var_joinids)[:],
        encoders={},
        codes={},
        nnz=nnz,
        raw_sum=raw_sum,
        raw_squares=raw_squares,
        content=content,
        obs_values=content.numbers(frame),
        obsm=read_obsm(measurement, content, joinids, address_of),
        queries=tiledb_private.describe_queries(axis_query),
        all_genes=len(var_joinids) == n_genes,
    )
    matrices = (
        *_layers(measurement, content.layers, selection, joinids, source_of),
        *_measurements(experiment, content.measurements, selection, joinids, source_of, secrets),
    )
    return replace(selection, matrices=matrices), frame


SourceOf = Callable[[Any, Any], Source]
"""Receives an open layer, and var of its measurement; returns its source."""


def _layers(
    measurement: Any, names: Sequence[str], selection: Selection, joinids: IntArray, source_of: SourceOf
) -> Iterator[FurtherMatrix]:
    """Yield the layers that are read beside X."""
    for name in names:
        array = _layer(measurement, name, f"layers: {name!r}")
        _check_within(array, joinids, selection.var_joinids)
        source = selection.source if name == selection.X_name else source_of(array, measurement.var)
        yield FurtherMatrix("layers", name, selection.measurement_name, name, source)


def _measurements(
    experiment: Any,
    layers: Mapping[str, str],
    selection: Selection,
    joinids: IntArray,
    source_of: SourceOf,
    secrets: frozenset[str],
) -> Iterator[FurtherMatrix]:
    """Yield the layers of further measurements, with all genes of each."""
    for name, layer in layers.items():
        if name == selection.measurement_name:
            raise SelectionError(
                f"measurements: {name!r} is the measurement of X; give its layers by name: layers=[{layer!r}]"
            )
        if name not in experiment.ms:
            raise SelectionError(f"measurements: {name!r} is not in the experiment; {suggest(name, experiment.ms)}")
        measurement = experiment.ms[name]
        array = _layer(measurement, layer, f"measurements: {layer!r} of {name!r}")
        var_joinids, _ = read_frame(measurement.var.read, [], f"var of {name!r}", secrets)
        _check_within(array, joinids, var_joinids)
        source = source_of(array, measurement.var)
        yield FurtherMatrix("measurements", name, name, layer, source, JoinIds.from_sorted(var_joinids)[:])


def _layer(measurement: Any, X_name: str, shown: str) -> Any:
    """Return an open layer; ``shown`` names the argument in errors."""
    import tiledbsoma as soma

    if X_name not in measurement.X:
        raise SelectionError(f"{shown} is not a layer of X; {suggest(X_name, measurement.X)}")
    array = measurement.X[X_name]
    if not isinstance(array, soma.SparseNDArray):
        raise SelectionError(
            f"{shown} is a {type(array).__name__}; cellfeed reads sparse layers "
            f"(tiledbsoma.SparseNDArray) only: write the layer as a sparse array"
        )
    if len(array.shape) != 2:
        raise SelectionError(f"{shown} has {len(array.shape)} dimensions; a layer has two, obs and var")
    return array


def _layout_of(array: Any) -> tuple[ArrayGeometry, TileLayout]:
    import json

    options = array.schema_config_options()
    dims = json.loads(options.dims)
    packed = (dims["soma_dim_0"], dims["soma_dim_1"], json.loads(options.attrs)["soma_data"])
    geometry = ArrayGeometry(
        row_extent=int(dims["soma_dim_0"]["tile"]),
        column_extent=int(dims["soma_dim_1"]["tile"]),
        capacity=int(options.capacity),
        n_rows=int(array.shape[0]),
        n_columns=int(array.shape[1]),
        nnz=tiledb_private.count_values(array),
        dtype=np.dtype(array.schema.field("soma_data").type.to_pandas_dtype()).name,
    )
    return geometry, TileLayout(
        filters=tuple(tuple(step["name"] for step in column.get("filters") or ()) for column in packed),
        row_major=options.cell_order == options.tile_order == "row-major",
        allows_duplicates=bool(options.allows_duplicates),
    )


def _check_within(array: Any, joinids: IntArray, var_joinids: IntArray) -> None:
    for axis, ids, size in (("obs", joinids, array.shape[0]), ("var", var_joinids, array.shape[1])):
        if len(ids) and ids[-1] >= size:
            raise SelectionError(
                f"{axis} holds soma_joinid {ids[-1]}, outside the layer's shape {tuple(array.shape)}; "
                f"the layer does not belong to this {axis}"
            )
