"""Makes a selection of what users give as a source of cells: the only module that chooses among kinds of sources."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from cellfeed.errors import PlanError, SelectionError
from cellfeed.select.content import NOTHING_MORE, Content
from cellfeed.select.encoders import Encoder
from cellfeed.select.find_measured import with_measured
from cellfeed.select.selection import Selection
from cellfeed.sources.redact import public_uri, redacted
from cellfeed.sources.retry import check_deadline
from cellfeed.sources.soma import query
from cellfeed.sources.soma.axis_query import as_axis_query
from cellfeed.sources.soma.experiment import open_experiment, retrying
from cellfeed.sources.soma.presence import presence_reader
from cellfeed.sources.soma.query import is_axis_query
from cellfeed.stats import Meter

METADATA = ("zarr.json", ".zgroup", ".zattrs")
"""Files of a group of zarr."""

HDF5_SUFFIXES = (".h5ad", ".h5")
SUFFIXES = (".zarr", *HDF5_SUFFIXES)
"""Ends of the names of AnnData: the only sign of one on an object store."""

MEASUREMENT = "RNA"
"""The default of ``measurement_name``."""

__all__ = [
    "is_anndata",
    "is_axis_query",
    "open_local_copy",
    "select_from_experiment",
    "select_from_paths",
    "select_from_query",
]


def select_from_experiment(
    experiment: Any,
    *,
    measurement_name: str,
    X_name: str | None,
    obs_query: Any,
    var_query: Any,
    obs_column_names: Sequence[str],
    encoders: Sequence[Encoder] | None,
    content: Content = NOTHING_MORE,
    measured: Any = False,
    retry_deadline_s: float,
    context: Any,
    allow_empty: bool,
    meter: Meter,
) -> Selection:
    """Select cells and genes of an experiment; see :class:`cellfeed.ExperimentDataset` for the parameters."""
    check_deadline(retry_deadline_s)
    _check_allow_empty(allow_empty)
    if is_anndata(experiment):
        selection = _select_from_anndata(
            experiment,
            measurement_name,
            X_name,
            as_axis_query("obs_query", obs_query),
            as_axis_query("var_query", var_query),
            obs_column_names,
            encoders,
            content=content,
            context=context,
            allow_empty=allow_empty,
        )
        return with_measured(selection, measured, None)
    X_name = "raw" if X_name is None else X_name
    with (
        retrying(experiment, context, retry_deadline_s, meter) as retries,
        open_experiment(experiment, context, retries) as opened,
    ):
        axis_query = query.make_axis_query(opened, measurement_name, obs_query, var_query, retries)
        selection = query.select(
            axis_query, X_name, obs_column_names, encoders, retries, content=content, allow_empty=allow_empty
        )
        return with_measured(selection, measured, presence_reader(opened, measurement_name, retries))


def select_from_query(
    axis_query: Any,
    *,
    X_name: str,
    obs_column_names: Sequence[str],
    encoders: Sequence[Encoder] | None,
    content: Content = NOTHING_MORE,
    measured: Any = False,
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
    _check_allow_empty(allow_empty)
    with (
        retrying(axis_query.experiment, None, retry_deadline_s, meter) as retries,
        open_experiment(axis_query.experiment, None, retries) as opened,
    ):
        fitted = query.fit_axis_query(axis_query, opened, retries)
        selection = query.select(
            fitted, X_name, obs_column_names, encoders, retries, content=content, allow_empty=allow_empty
        )
        return with_measured(selection, measured, presence_reader(opened, fitted.measurement_name, retries))


def _check_allow_empty(allow_empty: Any) -> None:
    if not isinstance(allow_empty, bool):
        raise SelectionError(f"allow_empty={allow_empty!r} must be True or False")


def is_anndata(source: Any) -> bool:
    """Whether a source is the path or URI of an AnnData in zarr or HDF5, by its name or the files in its folder."""
    if not isinstance(source, (str, PathLike)):
        return False
    place = os.fspath(source).rstrip("/")
    if "://" in place and not place.startswith("file://"):
        return place.endswith(SUFFIXES)
    path = Path(place.removeprefix("file://"))
    try:
        return path.suffix in HDF5_SUFFIXES or any((path / name).exists() for name in METADATA)
    except (OSError, ValueError):  # no path has this text
        return False


def _select_from_anndata(
    source: Any,
    measurement_name: str,
    X_name: str | None,
    obs_query: Any,
    var_query: Any,
    obs_column_names: Sequence[str],
    encoders: Sequence[Encoder] | None,
    *,
    content: Content,
    context: Any,
    allow_empty: bool,
) -> Selection:
    from cellfeed.sources.anndata.files import anndata_files
    from cellfeed.sources.anndata.joins import check_same_var
    from cellfeed.sources.anndata.query import make_source, select

    _check_anndata(measurement_name, context)
    files = anndata_files(source, "experiment")
    check_same_var(files)
    made = make_source(public_uri(os.fspath(source)), files, "X" if X_name is None else X_name)
    return select(made, obs_query, var_query, obs_column_names, encoders, content=content, allow_empty=allow_empty)


def _check_anndata(measurement_name: str, context: Any) -> None:
    if measurement_name != MEASUREMENT:
        raise SelectionError(f"measurement_name={measurement_name!r}: an AnnData has one measurement; leave it out")
    if context is not None:
        raise SelectionError("context= goes with an experiment of SOMA, and this source is an AnnData; leave it out")


def select_from_paths(
    paths: Sequence[str],
    *,
    layer: str | None,
    measurement_name: str,
    obs_query: str | None,
    var_column: str | None,
    join_genes: Any,
    join_obs: Any,
    context: Any,
    retry_deadline_s: float,
    announce: Callable[[str], object],
) -> Selection:
    """Select cells of a SOMA experiment, or of one or several AnnData, which are joined.

    Parameters
    ----------
    layer
        The layer; ``None`` takes ``raw`` of an experiment, and of each AnnData one that holds counts.
    var_column
        The column of var by which genes are joined; ``None`` takes ``var_names``.
    join_genes, join_obs
        Whether genes, and columns of obs, are those of any AnnData (``"union"``) or of all (``"intersection"``).
    announce
        Receives a line per AnnData that says which layer is read.
    """
    check_deadline(retry_deadline_s)
    experiments = [path for path in paths if _is_experiment(path)]
    if len(experiments) and len(paths) > 1:
        raise SelectionError(
            f"SOURCE={public_uri(experiments[0])!r} is a SOMA experiment, which is copied alone; give it without "
            f"other sources"
        )
    if experiments:
        return select_from_experiment(
            paths[0],
            measurement_name=measurement_name,
            X_name=layer,
            obs_query=obs_query,
            var_query=None,
            obs_column_names=(),
            encoders=None,
            retry_deadline_s=retry_deadline_s,
            context=context,
            allow_empty=False,
            meter=Meter(),
        )
    from cellfeed.sources.anndata.query import Query, select
    from cellfeed.sources.anndata.studies import find_studies, source_of

    _check_anndata(measurement_name, context)
    studies = find_studies(paths, layer, "SOURCE")
    for study in studies if layer is None else ():
        announce(f"{public_uri(study.path)}: {study.layer.name} is taken; {study.layer.reason}")
    source = source_of(studies, genes=join_genes, obs=join_obs, var_column=var_column)
    return select(source, Query(obs_query), Query())


def _is_experiment(path: str) -> bool:
    if "://" in path and not path.startswith("file://"):
        return not is_anndata(path)
    from cellfeed.sources.anndata.files import identify

    return identify(path).kind == "soma"


def open_local_copy(path: str | PathLike[str] | None, selection: Selection) -> Any:
    """Open or begin the local copy of a selection at a path; ``None`` for no path."""
    if path is None:
        return None
    from cellfeed.sources.anndata.copies.local_copy import LocalCopy

    if not isinstance(path, (str, PathLike)) or "://" in os.fspath(path):
        raise SelectionError(f"local_copy={path!r} must be the path of a folder on a local disk")
    if selection.matrices:
        raise PlanError(
            f"local_copy= holds X only, and layers= or measurements= ask for more: write the layers, too, with "
            f"dataset.write_copy({os.fspath(path)!r}) of a dataset without local_copy=, and read this copy by its path"
        )
    return LocalCopy(path, selection)
