"""Experiments, opened and checked; what goes wrong with them is told without their credentials."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Any

from cellfeed.errors import SelectionError
from cellfeed.sources.failures import advice_for
from cellfeed.sources.redact import public_uri, reraise_as, secrets_of
from cellfeed.sources.retry import NO_RETRY, Retries
from cellfeed.sources.soma import tiledb_private
from cellfeed.sources.soma.address import ArrayAddress, locate
from cellfeed.stats import Meter


@contextlib.contextmanager
def retrying(experiment: Any, context: Any, deadline_s: float, meter: Meter) -> Iterator[Retries]:
    """Give what tries again to read an experiment, or what lies at a URI, as long as that fails."""
    import tiledbsoma as soma

    uri, config = "", {}
    if isinstance(experiment, (str, PathLike)):
        uri, config = locate(experiment), _config(context)
    elif isinstance(experiment, soma.Experiment):
        uri, config = experiment.uri, _config(experiment.context)
    was_reached = isinstance(experiment, soma.Experiment)
    made = ArrayAddress(uri, 0, config, deadline_s).retries(meter=meter, was_reached=was_reached)
    with contextlib.closing(made) as retries:
        yield retries


def _config(context: Any) -> dict[str, str]:
    import tiledbsoma as soma

    return tiledb_private.user_config(context) if isinstance(context, soma.SOMATileDBContext) else {}


@contextlib.contextmanager
def open_experiment(experiment: Any, context: Any = None, retries: Retries = NO_RETRY) -> Iterator[Any]:
    """Give an open experiment: the one passed in, or that of a URI for as long as it is needed."""
    if isinstance(experiment, (str, PathLike)):
        with open_uri("experiment", experiment, context, retries) as opened:
            yield check_experiment(opened, repr(public_uri(experiment)))
        return
    if context is not None:
        raise SelectionError("context= goes with a URI; an open experiment brings its own")
    with tiledb_private.of_this_process(
        check_experiment(experiment, _with_article(type(experiment).__name__))
    ) as opened:
        yield opened


def open_uri(argument: str, given: str | PathLike[str], context: Any = None, retries: Retries = NO_RETRY) -> Any:
    """Open the object of tiledbsoma at a URI or path; ``argument`` is its name in errors."""
    import tiledbsoma as soma

    _check_context(context)
    uri, shown = locate(given), public_uri(given)
    safe = tiledb_private.safe_context(context)
    what = f"{argument}={shown!r} is not a SOMA experiment that can be opened"
    with reraise_as(SelectionError, what, secrets_of(uri, _config(context)), f"; {_GIVE}"):
        try:
            return retries.call(lambda: soma.open(uri, context=safe))
        except soma.DoesNotExistError as cause:
            if advice_for(str(cause)) is not None:  # a bucket that does not exist, or keys that do not
                raise
            # Its own causes say no more.
            raise SelectionError(f"{what}: {_what_is_at(uri, safe.timestamp_ms)}") from None


_GIVE = "give a tiledbsoma.Experiment or the URI of one"


def _what_is_at(uri: str, timestamp_ms: int | None) -> str:
    """Say what is found at a URI where TileDB sees nothing of SOMA, and what to do."""
    scheme, separator, rest = uri.partition("://")
    path = Path(rest if separator else uri)
    if separator and scheme != "file":
        return _way_from(path) or f"nothing of SOMA is there, or may not be read; {_GIVE}"
    if not path.exists():
        home = "; '~' is not expanded: give os.path.expanduser(...)" if "~" in path.parts else ""
        return f"there is no {str(path)!r}{home}; {_GIVE}"
    if (written := _first_written(path)) and written > (limit := timestamp_ms or int(time.time() * 1000)):
        return (
            f"it is written at {_as_time(written)}, which is after {_as_time(limit)}, "
            f"{'the timestamp of context=' if timestamp_ms else 'the time of this machine'}; give "
            f"context=tiledbsoma.SOMATileDBContext(timestamp={written}) or a later one, or set the clock"
        )
    return _way_from(path) or f"the {'folder' if path.is_dir() else 'file'} holds nothing of SOMA; {_GIVE}"


def _first_written(path: Path) -> int | None:
    """Return when a TileDB group in a local folder was first written, in milliseconds; ``None`` if there is none."""
    names = [entry.name.split("_") for entry in path.glob("__group/__*")]
    return min((int(parts[2]) for parts in names if len(parts) > 3 and parts[2].isdecimal()), default=None)


def _as_time(timestamp_ms: int) -> str:
    return datetime.fromtimestamp(timestamp_ms / 1000, UTC).isoformat(" ", "milliseconds")


def _way_from(path: Path) -> str | None:
    """Say how an experiment is made of a file or folder of AnnData; ``None`` if it seems to be something else."""
    target, names = str(path.with_suffix(".soma")), 'measurement_name="RNA", X_layer_name="raw"'
    if path.suffix == ".h5ad":
        return (
            f"it is an AnnData file; make an experiment of it with "
            f"tiledbsoma.io.from_h5ad({target!r}, {str(path)!r}, {names}) and give {target!r}"
        )
    if path.suffix == ".zarr" or any((path / name).exists() for name in (".zgroup", "zarr.json")):
        return (
            f"it is an AnnData in zarr; make an experiment of it with "
            f"tiledbsoma.io.from_anndata({target!r}, anndata.read_zarr({str(path)!r}), {names}) and give {target!r}"
        )
    return None


def _with_article(name: str) -> str:
    return f"{'an' if name[:1] in 'AEIOUaeiou' else 'a'} {name}"


def _check_context(context: Any) -> None:
    import tiledbsoma as soma

    if context is not None and not isinstance(context, soma.SOMATileDBContext):
        raise SelectionError(
            f"context= is a {type(context).__name__}; give a tiledbsoma.SOMATileDBContext(tiledb_config={{...}})"
        )


def _way_from_object(experiment: Any) -> str | None:
    """Say how to use an object that stands for cells and is not an experiment; ``None`` if it is something else."""
    import tiledbsoma as soma

    if isinstance(experiment, soma.ExperimentAxisQuery):
        return "give a query to ExperimentDataset.from_query(axis_query, ...)"
    if type(experiment).__module__.split(".")[0] == "anndata":
        return (
            'make an experiment of it with tiledbsoma.io.from_anndata("cells.soma", adata, measurement_name="RNA", '
            'X_layer_name="raw") and give "cells.soma"'
        )
    return None


def check_experiment(experiment: Any, given: str) -> Any:
    """Return an experiment that is one, and is open for reading; ``given`` is how an error shall name it."""
    import tiledbsoma as soma

    if (way := _way_from_object(experiment)) is not None:
        raise SelectionError(f"experiment={given} is not a tiledbsoma.Experiment: {way}")
    if not isinstance(experiment, soma.Experiment):
        members = sorted(experiment) if isinstance(experiment, soma.Collection) and not experiment.closed else []
        inside = f"; open one of its members: {', '.join(map(repr, members))}" if members else ""
        kind = type(experiment).__name__
        raise SelectionError(
            f"experiment={given} is a {kind}, not a tiledbsoma.Experiment{inside} (in a Census: "
            f'census["census_data"]["homo_sapiens"])'
        )
    if experiment.closed:
        raise SelectionError(
            f"experiment={given} is closed; open it with tiledbsoma.Experiment.open({public_uri(experiment.uri)!r}) "
            f"and keep it open until the dataset is made"
        )
    if experiment.mode != "r":
        raise SelectionError(f"experiment={given} is open for writing (mode {experiment.mode!r}); open it for reading")
    return experiment


def reading(experiment: Any) -> contextlib.AbstractContextManager[None]:
    """Tell of what goes wrong while an experiment's obs, var and metadata are read."""
    secrets = secrets_of(experiment.uri, tiledb_private.user_config(experiment.context))
    return reraise_as(SelectionError, f"experiment={public_uri(experiment.uri)!r} cannot be read", secrets)
