"""Experiments, opened and checked; what goes wrong with them is told without their credentials."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cellfeed import native
from cellfeed.address import ArrayAddress
from cellfeed.errors import SelectionError
from cellfeed.redact import public_uri, secrets_of, told_as
from cellfeed.retry import ONCE, Retries
from cellfeed.stats import Meter


@contextlib.contextmanager
def retrying(experiment: Any, context: Any, deadline_s: float, meter: Meter) -> Iterator[Retries]:
    """Give what tries again to read an experiment, or what lies at a URI, as long as that fails."""
    import tiledbsoma as soma

    uri, config = "", {}
    if isinstance(experiment, (str, Path)):
        uri, config = str(experiment), _config(context)
    elif isinstance(experiment, soma.Experiment):
        uri, config = experiment.uri, _config(experiment.context)
    with contextlib.closing(ArrayAddress(uri, 0, config, deadline_s).retries(meter=meter)) as retries:
        yield retries


def _config(context: Any) -> dict[str, str]:
    import tiledbsoma as soma

    return native.user_config(context) if isinstance(context, soma.SOMATileDBContext) else {}


@contextlib.contextmanager
def open_experiment(experiment: Any, context: Any = None, retries: Retries = ONCE) -> Iterator[Any]:
    """Give an open experiment: the one passed in, or that of a URI for as long as it is needed."""
    import tiledbsoma as soma

    if isinstance(experiment, (str, Path)):
        uri = str(experiment)
        _check_context(context)
        with told_as(
            SelectionError,
            f"experiment={public_uri(uri)!r} is not a SOMA experiment that can be opened",
            secrets_of(uri, _config(context)),
            "; give a tiledbsoma.Experiment or the URI of one",
        ):
            safe = native.safe_context(context)
            opened = retries.call(lambda: soma.open(uri, context=safe))
        with opened:
            yield check_experiment(opened, repr(public_uri(uri)))
        return
    if context is not None:
        raise SelectionError("context= goes with a URI; an open experiment brings its own")
    yield check_experiment(experiment, f"a {type(experiment).__name__}")


def _check_context(context: Any) -> None:
    import tiledbsoma as soma

    if context is not None and not isinstance(context, soma.SOMATileDBContext):
        raise SelectionError(
            f"context= is a {type(context).__name__}; give a tiledbsoma.SOMATileDBContext(tiledb_config={{...}})"
        )


def check_experiment(experiment: Any, given: str) -> Any:
    """Return an experiment that is one, and is open for reading; ``given`` is how an error shall name it."""
    import tiledbsoma as soma

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
    secrets = secrets_of(experiment.uri, native.user_config(experiment.context))
    return told_as(SelectionError, f"experiment={public_uri(experiment.uri)!r} cannot be read", secrets)
