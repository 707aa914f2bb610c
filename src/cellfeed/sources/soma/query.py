"""Makes a :class:`Selection` of an experiment and a query: reads obs and var once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd

from cellfeed._checks import check_name, suggest
from cellfeed._joinids import JoinIds
from cellfeed.errors import SelectionError
from cellfeed.select.content import NOTHING_MORE, Content
from cellfeed.select.encoders import Encoder
from cellfeed.select.filter_check import fit_query
from cellfeed.select.obs_columns import ObsColumns
from cellfeed.select.row_figures import columns_of, figures_of
from cellfeed.select.selection import Selection
from cellfeed.sources.redact import public_uri
from cellfeed.sources.retry import NO_RETRY, Retries
from cellfeed.sources.soma import tiledb_private
from cellfeed.sources.soma.address import is_remote
from cellfeed.sources.soma.axis_query import as_axis_query
from cellfeed.sources.soma.embeddings import find_obsm, read_obsm
from cellfeed.sources.soma.empty_query import check_not_empty
from cellfeed.sources.soma.experiment import check_experiment, reading
from cellfeed.sources.soma.layers import Arrays, check_within, find_further, find_layer, further_matrices
from cellfeed.sources.soma.tables import read_frame


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
    experiment, name = axis_query.experiment, axis_query.measurement_name
    measurement, arrays = experiment.ms[name], Arrays(experiment, retry_deadline_s)
    array = find_layer(measurement, X_name, f"X_name={X_name!r}")
    further, shapes = find_further(experiment, name, content), find_obsm(measurement, content)
    known = experiment.obs.schema.names
    columns = [*obs_columns.needed(known), *content.needed(known)]

    figures = columns_of(X_name, known, is_remote=is_remote(experiment.obs.uri))
    columns = list(dict.fromkeys([*columns, *figures]))
    joinids, frame = read_frame(axis_query.obs, columns, "obs_query", arrays.secrets)
    nnz, raw_sum, raw_squares = figures_of(frame[figures])
    var_joinids, _ = read_frame(axis_query.var, [], "var_query", arrays.secrets)
    n_genes = len(var_joinids) if len(var_joinids) == array.shape[1] else measurement.var.count
    obs_joinids = JoinIds.from_sorted(joinids)
    check_within(array, joinids, var_joinids)
    selection = Selection(
        experiment_uri=public_uri(experiment.uri),
        measurement_name=name,
        X_name=X_name,
        source=arrays.source(array, measurement.var),
        joinids=obs_joinids,
        var_joinids=JoinIds.from_sorted(var_joinids)[:],
        encoders={},
        codes={},
        nnz=nnz,
        raw_sum=raw_sum,
        raw_squares=raw_squares,
        content=content,
        obs_values=content.numbers(frame),
        obsm=read_obsm(measurement, content, shapes, joinids, arrays.address),
        queries=tiledb_private.describe_queries(axis_query),
        all_genes=len(var_joinids) == n_genes,
    )
    return replace(selection, matrices=tuple(further_matrices(arrays, further, selection, joinids))), frame
