"""Opens and checks experiments; errors do not show credentials."""

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
    """Yield a :class:`Retries` object for the requests to an experiment or URI."""
    import tiledbsoma as soma

    uri, config = "", {}
    if isinstance(experiment, (str, PathLike)):
        uri, config = locate(experiment), config_of(context)
    elif isinstance(experiment, soma.Experiment):
        uri, config = experiment.uri, config_of(experiment.context)
    was_reached = isinstance(experiment, soma.Experiment)
    address = ArrayAddress(uri, 0, config, deadline_s)
    with contextlib.closing(address.retries(meter=meter, was_reached=was_reached)) as retries:
        yield retries


def config_of(context: Any) -> dict[str, str]:
    """Return the TileDB settings of a user's context; none if it is not a context."""
    import tiledbsoma as soma

    return tiledb_private.user_config(context) if isinstance(context, soma.SOMATileDBContext) else {}


@contextlib.contextmanager
def open_experiment(experiment: Any, context: Any = None, retries: Retries = NO_RETRY) -> Iterator[Any]:
    """Yield an open experiment: the given one, or the one at a URI, which is closed afterwards."""
    if isinstance(experiment, (str, PathLike)):
        with _open_uri(experiment, context, retries) as opened:
            yield check_experiment(opened, repr(public_uri(experiment)))
        return
    if context is not None:
        raise SelectionError("context= goes with a URI; an open experiment brings its own")
    with tiledb_private.of_this_process(
        check_experiment(experiment, _with_article(type(experiment).__name__))
    ) as opened:
        yield opened


def _open_uri(experiment: str | PathLike[str], context: Any, retries: Retries) -> Any:
    """Open the SOMA object at a URI or path."""
    import tiledbsoma as soma

    _check_context(context)
    uri, shown = locate(experiment), public_uri(experiment)
    safe = tiledb_private.safe_context(context)
    what = f"experiment={shown!r} is not a SOMA experiment that can be opened"
    with reraise_as(SelectionError, what, secrets_of(uri, config_of(context)), f"; {_GIVE}"):
        try:
            return retries.call(lambda: soma.open(uri, context=safe))
        except soma.DoesNotExistError as cause:
            if advice_for(str(cause)) is not None:  # a bucket that does not exist, or keys that do not
                raise
            # Its causes add nothing.
            raise SelectionError(f"{what}: {_what_is_at(uri, safe.timestamp_ms)}") from None


_GIVE = "give a tiledbsoma.Experiment or the URI of one, or the path of an AnnData (.zarr or .h5ad)"


def _what_is_at(uri: str, timestamp_ms: int | None) -> str:
    """Describe what is at a URI where TileDB finds no SOMA object, and what to do about it."""
    scheme, separator, rest = uri.partition("://")
    path = Path(rest if separator else uri)
    if separator and scheme != "file":
        return f"no SOMA object is there, or it may not be read; {_GIVE}"
    if not path.exists():
        home = "; '~' is not expanded: give os.path.expanduser(...)" if "~" in path.parts else ""
        return f"there is no {str(path)!r}{home}; {_GIVE}"
    if (written := _first_written(path)) and written > (limit := timestamp_ms or int(time.time() * 1000)):
        return (
            f"it was written at {_as_time(written)}, which is after {_as_time(limit)}, "
            f"{'the timestamp of context=' if timestamp_ms else 'the time of this machine'}; give "
            f"context=tiledbsoma.SOMATileDBContext(timestamp={written}) or a later one, or set the clock"
        )
    return f"the {'folder' if path.is_dir() else 'file'} holds no SOMA object; {_GIVE}"


def _first_written(path: Path) -> int | None:
    """Return the time of the first write to a local TileDB group in milliseconds; ``None`` if there is no group."""
    names = [entry.name.split("_") for entry in path.glob("__group/__*")]
    return min((int(parts[2]) for parts in names if len(parts) > 3 and parts[2].isdecimal()), default=None)


def _as_time(timestamp_ms: int) -> str:
    return datetime.fromtimestamp(timestamp_ms / 1000, UTC).isoformat(" ", "milliseconds")


def _with_article(name: str) -> str:
    return f"{'an' if name[:1] in 'AEIOUaeiou' else 'a'} {name}"


def _check_context(context: Any) -> None:
    import tiledbsoma as soma

    if context is not None and not isinstance(context, soma.SOMATileDBContext):
        raise SelectionError(
            f"context= is a {type(context).__name__}; give a tiledbsoma.SOMATileDBContext(tiledb_config={{...}})"
        )


def _how_to_use(experiment: Any) -> str | None:
    """Describe how to use a query or an AnnData; ``None`` if the object is neither."""
    import tiledbsoma as soma

    if isinstance(experiment, soma.ExperimentAxisQuery):
        return "give a query to ExperimentDataset.from_query(axis_query, ...)"
    if type(experiment).__module__.split(".")[0] == "anndata":
        return 'write it with adata.write_h5ad("cells.h5ad") and give "cells.h5ad"'
    return None


def check_experiment(experiment: Any, shown: str) -> Any:
    """Return an object if it is an experiment and open for reading, else raise an error that calls it ``shown``."""
    import tiledbsoma as soma

    if (advice := _how_to_use(experiment)) is not None:
        raise SelectionError(f"experiment={shown} is not a tiledbsoma.Experiment: {advice}")
    if not isinstance(experiment, soma.Experiment):
        members = sorted(experiment) if isinstance(experiment, soma.Collection) and not experiment.closed else []
        inside = f"; open one of its members: {', '.join(map(repr, members))}" if members else ""
        kind = type(experiment).__name__
        raise SelectionError(
            f"experiment={shown} is a {kind}, not a tiledbsoma.Experiment{inside} (in a Census: "
            f'census["census_data"]["homo_sapiens"])'
        )
    if experiment.closed:
        raise SelectionError(
            f"experiment={shown} is closed; open it with tiledbsoma.Experiment.open({public_uri(experiment.uri)!r}) "
            f"and keep it open until the dataset is made"
        )
    if experiment.mode != "r":
        raise SelectionError(f"experiment={shown} is open for writing (mode {experiment.mode!r}); open it for reading")
    return experiment


def reading(experiment: Any) -> contextlib.AbstractContextManager[None]:
    """Raise errors of the body, which reads an experiment's obs, var and metadata, as SelectionErrors."""
    secrets = secrets_of(experiment.uri, tiledb_private.user_config(experiment.context))
    return reraise_as(SelectionError, f"experiment={public_uri(experiment.uri)!r} cannot be read", secrets)
