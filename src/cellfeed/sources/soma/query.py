"""From an experiment and a query to a :class:`Selection`: everything that reads obs and var."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from cellfeed._checks import check_name, ordered, suggest
from cellfeed._geometry import ArrayGeometry
from cellfeed._joinids import IntArray, JoinIds
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
from cellfeed.sources.soma.identity import array_id
from cellfeed.sources.soma.layer import SomaLayer
from cellfeed.sources.soma.tables import JOINID, read_frame
from cellfeed.sources.soma.tiles.index import TileLayout


def make_axis_query(
    experiment: Any, measurement_name: str, obs_query: Any, var_query: Any, retries: Retries = NO_RETRY
) -> Any:
    """Combine the parts of a query; what is not in the experiment is an error."""
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
    """Query an experiment by what fits the columns of its obs and var."""
    var = experiment.ms[measurement_name].var
    return experiment.axis_query(
        measurement_name,
        obs_query=fit_query("obs_query", obs_query, experiment.obs, "obs"),
        var_query=fit_query("var_query", var_query, var, "var"),
    )


def fit_axis_query(axis_query: Any, experiment: Any, retries: Retries = NO_RETRY) -> Any:
    """Return a query of an experiment with the parts of another query; that query itself if it does not have parts.

    The parts are checked as those of :func:`make_axis_query` are.
    """
    parts = tiledb_private.parts_of(axis_query)
    if parts is None:
        return axis_query
    return make_axis_query(experiment, axis_query.measurement_name, *parts, retries)


def is_axis_query(candidate: Any) -> bool:
    """Whether something is, or behaves like, a ``tiledbsoma.ExperimentAxisQuery``."""
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
    """Read obs and var once: the selected cells and genes, and their codes.

    Raises
    ------
    SelectionError
        If nothing is selected, unless ``allow_empty``; or what is selected cannot be read.
    """
    experiment = check_experiment(axis_query.experiment, "the query's experiment")
    check_name("X_name", X_name)
    if not isinstance(allow_empty, bool):
        raise SelectionError(f"allow_empty={allow_empty!r} must be True or False")
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
    axis_query: Any, X_name: str, chosen: list[Encoder | None], retry_deadline_s: float
) -> tuple[Selection, pd.DataFrame]:
    """Read what is selected, without codes, and the columns of obs of which encoders make them."""
    experiment = axis_query.experiment
    measurement = experiment.ms[axis_query.measurement_name]
    array = _layer(measurement, X_name)
    columns = list(dict.fromkeys(column for encoder in chosen if encoder for column in encoder.columns))
    if any(encoder and not isinstance(encoder, NamedEncoder) for encoder in chosen) and JOINID not in columns:
        columns.append(JOINID)  # encoders of users may read it unnamed, as the published loader lets them
    _check_columns(experiment.obs, columns, chosen)

    config = tiledb_private.user_config(experiment.context)
    secrets = secrets_of(experiment.uri, config)
    figures = columns_of(X_name, experiment.obs.schema.names, is_remote=is_remote(experiment.obs.uri))
    joinids, frame = read_frame(axis_query.obs, list(dict.fromkeys([*columns, *figures])), "obs_query", secrets)
    nnz, raw_sum, raw_squares = figures_of(frame[figures])
    var_joinids, _ = read_frame(axis_query.var, [], "var_query", secrets)
    n_genes = len(var_joinids) if len(var_joinids) == array.shape[1] else measurement.var.count
    ids = JoinIds.from_sorted(joinids)
    _check_within(array, joinids, var_joinids)

    geometry, layout = _layout_of(array)

    def address(item: Any) -> ArrayAddress:
        return ArrayAddress(item.uri, item.tiledb_timestamp_ms, config, retry_deadline_s)

    selection = Selection(
        experiment_uri=public_uri(experiment.uri),
        measurement_name=axis_query.measurement_name,
        X_name=X_name,
        source=SomaLayer(
            X=address(array),
            obs=address(experiment.obs),
            var=address(measurement.var),
            layout=layout,
            created=array_id(address(array)),
        ),
        geometry=geometry,
        joinids=ids,
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


def _layer(measurement: Any, X_name: str) -> Any:
    import tiledbsoma as soma

    if X_name not in measurement.X:
        raise SelectionError(f"X_name={X_name!r} is not a layer of X; {suggest(X_name, measurement.X)}")
    array = measurement.X[X_name]
    if not isinstance(array, soma.SparseNDArray):
        raise SelectionError(
            f"X_name={X_name!r} is a {type(array).__name__}; cellfeed reads sparse layers "
            f"(tiledbsoma.SparseNDArray) only: write the layer as a sparse one"
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
        n_values=tiledb_private.count_values(array),
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
                f"the layer and {axis} do not belong together"
            )


def _choose_encoders(obs_column_names: Sequence[str], encoders: Sequence[Encoder] | None) -> list[Encoder | None]:
    """One encoder per column of the minibatch's obs; ``None`` stands for the joinid itself."""
    names = ordered("obs_column_names", obs_column_names)
    for name in names:
        check_name("obs_column_names: a column", name)
    encoders = None if encoders is None else ordered("encoders", encoders)
    if encoders is not None and len(encoders):
        if names:
            raise EncodeError(
                f"encoders and obs_column_names={names} exclude each other: the encoders say which columns "
                f"they need; give LabelEncoder(column) for a plain one"
            )
        for encoder in encoders:
            if not isinstance(encoder, Encoder):
                raise EncodeError(f"encoders: {encoder!r} is not a cellfeed.Encoder")
        names = [encoder.name for encoder in encoders]
        chosen: list[Encoder | None] = list(encoders)
    else:
        chosen = [None if name == JOINID else LabelEncoder(name) for name in names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise EncodeError(f"two encoders have the name {twice[0]!r}; names must differ (they key dataset.obs_encoders)")
    return chosen


def _check_columns(obs: Any, columns: list[str], chosen: Sequence[Encoder | None]) -> None:
    known = set(obs.schema.names)
    for column in columns:
        if column not in known:
            needed = [encoder.name for encoder in chosen if encoder and column in encoder.columns]
            raise SelectionError(
                f"obs has no column {column!r}, which encoder {needed[0]!r} needs (obs_column_names or "
                f"encoders); {suggest(column, known)}"
            )
