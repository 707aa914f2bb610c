"""Makes a :class:`Selection` of an experiment and a query: reads obs and var once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from cellfeed._checks import check_name, ordered, suggest
from cellfeed._geometry import ArrayGeometry
from cellfeed._joinids import JOINID, IntArray, JoinIds
from cellfeed.errors import EncodeError, SelectionError
from cellfeed.select.encoders import Encoder, LabelEncoder, NamedEncoder, encode
from cellfeed.select.filter_check import fit_query
from cellfeed.select.labels import warn_of_labels
from cellfeed.select.row_figures import columns_of, figures_of
from cellfeed.select.selection import Selection
from cellfeed.sources.redact import public_uri, secrets_of
from cellfeed.sources.retry import NO_RETRY, Retries
from cellfeed.sources.soma import tiledb_private
from cellfeed.sources.soma.address import ArrayAddress, is_remote
from cellfeed.sources.soma.axis_query import as_axis_query
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
    if not isinstance(allow_empty, bool):
        raise SelectionError(f"allow_empty={allow_empty!r} must be True or False")
    encoders = [] if encoders is None else ordered("encoders", encoders)
    chosen = _choose_encoders(obs_column_names, encoders)
    with reading(experiment):
        selection, frame = retries.call(lambda: _read(axis_query, X_name, chosen, retries.deadline_s))
        if not allow_empty:
            retries.call(partial(check_not_empty, axis_query, selection.n_obs, selection.n_vars))
    codes = {
        encoder.name if encoder else JOINID: encode(encoder, frame) if encoder else selection.joinids
        for encoder in chosen
    }
    warn_of_labels(chosen, frame, plain=not encoders)
    return replace(selection, encoders={encoder.name: encoder for encoder in chosen if encoder}, codes=codes)


def _read(
    axis_query: Any, X_name: str, encoders: list[Encoder | None], retry_deadline_s: float
) -> tuple[Selection, pd.DataFrame]:
    """Return the selection without encoders and codes, and the columns of obs that the encoders need."""
    experiment = axis_query.experiment
    measurement = experiment.ms[axis_query.measurement_name]
    array = _layer(measurement, X_name)
    columns = _needed_columns(experiment.obs, encoders)
    config = tiledb_private.user_config(experiment.context)
    secrets = secrets_of(experiment.uri, config)

    figures = columns_of(X_name, experiment.obs.schema.names, is_remote=is_remote(experiment.obs.uri))
    joinids, frame = read_frame(axis_query.obs, list(dict.fromkeys([*columns, *figures])), "obs_query", secrets)
    nnz, raw_sum, raw_squares = figures_of(frame[figures])
    var_joinids, _ = read_frame(axis_query.var, [], "var_query", secrets)
    n_genes = len(var_joinids) if len(var_joinids) == array.shape[1] else measurement.var.count
    obs_joinids = JoinIds.from_sorted(joinids)
    _check_within(array, joinids, var_joinids)

    source: Source = _source_of(array, experiment.obs, measurement.var, config, retry_deadline_s)
    selection = Selection(
        experiment_uri=public_uri(experiment.uri),
        measurement_name=axis_query.measurement_name,
        X_name=X_name,
        source=source,
        joinids=obs_joinids,
        var_joinids=JoinIds.from_sorted(var_joinids)[:],
        encoders={},
        codes={},
        nnz=nnz,
        raw_sum=raw_sum,
        raw_squares=raw_squares,
        queries=tiledb_private.describe_queries(axis_query),
        all_genes=len(var_joinids) == n_genes,
    )
    return selection, frame


def _source_of(array: Any, obs: Any, var: Any, config: dict[str, str], retry_deadline_s: float) -> SomaLayer:
    """Return the source of an open layer, obs and var."""
    X_address, obs_address, var_address = (
        ArrayAddress(opened.uri, opened.tiledb_timestamp_ms, config, retry_deadline_s) for opened in (array, obs, var)
    )
    return SomaLayer(X_address, obs_address, var_address, *_layout_of(array), array_id=read_array_id(X_address))


def _layer(measurement: Any, X_name: str) -> Any:
    import tiledbsoma as soma

    if X_name not in measurement.X:
        raise SelectionError(f"X_name={X_name!r} is not a layer of X; {suggest(X_name, measurement.X)}")
    array = measurement.X[X_name]
    if not isinstance(array, soma.SparseNDArray):
        raise SelectionError(
            f"X_name={X_name!r} is a {type(array).__name__}; cellfeed reads sparse layers "
            f"(tiledbsoma.SparseNDArray) only: write the layer as a sparse array"
        )
    if len(array.shape) != 2:
        raise SelectionError(f"X_name={X_name!r} has {len(array.shape)} dimensions; a layer has two, obs and var")
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


def _choose_encoders(obs_column_names: Sequence[str], encoders: Sequence[Encoder]) -> list[Encoder | None]:
    """Return one encoder per column of the minibatch's obs; ``None`` stands for the joinid."""
    names = ordered("obs_column_names", obs_column_names)
    for name in names:
        check_name("obs_column_names: a column", name)
    if encoders:
        if names:
            raise EncodeError(
                f"encoders and obs_column_names={names} exclude each other: encoders name the columns "
                f"that they need; give LabelEncoder(column) for a plain column"
            )
        for encoder in encoders:
            if not isinstance(encoder, Encoder):
                raise EncodeError(f"encoders: {encoder!r} is not a cellfeed.Encoder")
        names = [encoder.name for encoder in encoders]
        chosen: list[Encoder | None] = list(encoders)
    else:
        chosen = [None if name == JOINID else LabelEncoder(name) for name in names]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise EncodeError(
            f"two encoders have the name {repeated[0]!r}; names must differ, as they are the keys of "
            f"dataset.obs_encoders"
        )
    return chosen


def _needed_columns(obs: Any, encoders: Sequence[Encoder | None]) -> list[str]:
    """Return the columns of obs that the encoders need; a column that obs lacks is an error."""
    columns = list(dict.fromkeys(column for encoder in encoders if encoder for column in encoder.columns))
    if any(encoder and not isinstance(encoder, NamedEncoder) for encoder in encoders) and JOINID not in columns:
        columns.append(JOINID)  # encoders of users may read it without naming it, as in tiledbsoma-ml
    known = set(obs.schema.names)
    for column in columns:
        if column not in known:
            needed_by = next(encoder.name for encoder in encoders if encoder and column in encoder.columns)
            raise SelectionError(
                f"obs has no column {column!r}, which encoder {needed_by!r} needs (obs_column_names or encoders); "
                f"{suggest(column, known)}"
            )
    return columns
