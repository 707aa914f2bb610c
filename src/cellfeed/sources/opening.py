"""From what users give as a source of cells to a selection: the one place that chooses among kinds of sources."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cellfeed.errors import SelectionError
from cellfeed.rows.heap import keep_freed_memory
from cellfeed.select.encoders import Encoder
from cellfeed.select.selection import Selection
from cellfeed.sources.redact import redacted
from cellfeed.sources.retry import check_deadline
from cellfeed.sources.soma import query
from cellfeed.sources.soma.experiment import open_experiment, retrying
from cellfeed.sources.soma.query import is_axis_query
from cellfeed.stats import Meter

__all__ = ["is_axis_query", "select_from_experiment", "select_from_query"]


def select_from_experiment(
    experiment: Any,
    *,
    measurement_name: str,
    X_name: str,
    obs_query: Any,
    var_query: Any,
    obs_column_names: Sequence[str],
    encoders: Sequence[Encoder] | None,
    retry_deadline_s: float,
    context: Any,
    allow_empty: bool,
    meter: Meter,
) -> Selection:
    """Select cells and genes of an experiment; see :class:`cellfeed.ExperimentDataset` for the parameters."""
    check_deadline(retry_deadline_s)
    keep_freed_memory()  # before threads of TileDB get heaps of their own
    with (
        retrying(experiment, context, retry_deadline_s, meter) as retries,
        open_experiment(experiment, context, retries) as opened,
    ):
        axis_query = query.make_axis_query(opened, measurement_name, obs_query, var_query, retries)
        return query.select(axis_query, X_name, obs_column_names, encoders, retries, allow_empty=allow_empty)


def select_from_query(
    axis_query: Any,
    *,
    X_name: str,
    obs_column_names: Sequence[str],
    encoders: Sequence[Encoder] | None,
    retry_deadline_s: float,
    allow_empty: bool,
    meter: Meter,
) -> Selection:
    """Select the cells and genes of a ``tiledbsoma.ExperimentAxisQuery``."""
    if not is_axis_query(axis_query):
        raise SelectionError(
            f"axis_query={redacted(repr(axis_query))} must be a tiledbsoma.ExperimentAxisQuery: "
            f'experiment.axis_query("RNA", obs_query=...)'
        )
    check_deadline(retry_deadline_s)
    keep_freed_memory()  # before threads of TileDB get heaps of their own
    with (
        retrying(axis_query.experiment, None, retry_deadline_s, meter) as retries,
        open_experiment(axis_query.experiment, None, retries) as opened,
    ):
        fitted = query.fit_axis_query(axis_query, opened, retries)
        return query.select(fitted, X_name, obs_column_names, encoders, retries, allow_empty=allow_empty)
