"""The ``cellfeed`` command: its options, and the display of errors and retries."""

import contextlib
import dataclasses
import functools
import inspect
import json
import logging
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from cellfeed import __version__
from cellfeed.command.options import (
    Access,
    BatchSize,
    Copied,
    CopyOptions,
    DatasetOptions,
    Json,
    Label,
    Mixing,
    Picture,
    Seconds,
    Source,
    Sparse,
    Speed,
)
from cellfeed.errors import CellfeedError
from cellfeed.sources.redact import redacted

app = typer.Typer(
    help="Feed single cells from TileDB-SOMA to PyTorch.",
    pretty_exceptions_enable=False,  # a traceback with local variables could show credentials
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 2 after an error, 130 after Ctrl-C."""
    try:
        with _showing_retries():
            return int(app(arguments, prog_name="cellfeed", standalone_mode=False) or 0)
    except typer.TyperException as error:
        message, context = error.format_message(), getattr(error, "ctx", None)
        _show(f"{message.rstrip('.')}. Try '{context.command_path} --help'." if context else message)
    except (CellfeedError, OSError) as error:
        _show(str(error))
    return 2


def _show(message: str) -> None:
    """Write an error to stderr, without the credentials in URIs."""
    Console(stderr=True).print(Text.assemble(("cellfeed: ", "bold red"), redacted(message)), soft_wrap=True)


class _OnePerSecond(logging.Filter):
    """Passes one message per second, because several requests fail together."""

    last = -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        if record.created - self.last < 1:
            return False
        self.last = record.created
        return True


@contextlib.contextmanager
def _showing_retries() -> Iterator[None]:
    """Write failed attempts of requests to stderr, with the time until the deadline."""
    log, handler = logging.getLogger("cellfeed.retry"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("cellfeed: %(message)s"))
    handler.addFilter(_OnePerSecond())
    level = log.level
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def _command(function: Callable[..., None]) -> None:
    """Add a command; a parameter whose type is a dataclass becomes one option per field."""
    parameters = inspect.signature(function).parameters.values()
    groups: dict[str, Any] = {p.name: p.annotation for p in parameters if dataclasses.is_dataclass(p.annotation)}

    @functools.wraps(function)
    def call(**arguments: Any) -> None:
        for name, kind in groups.items():
            arguments[name] = kind(**{field.name: arguments.pop(field.name) for field in dataclasses.fields(kind)})
        function(**arguments)

    fields = {name: inspect.signature(kind).parameters.values() for name, kind in groups.items()}
    flat = [option for p in parameters for option in fields.get(p.name, [p])]
    call.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in flat}
    app.command()(call)


# ---------------------------------------------------------------------- commands


def _print_version(requested: bool) -> None:
    if requested:
        print(f"cellfeed {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


@_command
def demo(
    *,
    uri: Annotated[str | None, typer.Option(help="SOMA experiment.", show_default="700 blood cells")] = None,
    label: Annotated[str, typer.Option(help="Column of obs to predict.")] = "bulk_labels",
    epochs: Annotated[int, typer.Option(help="Number of epochs.")] = 20,
    dataset: DatasetOptions,
    batch_size: BatchSize = 64,
    access: Access,
) -> None:
    """Train a classifier of cell types."""
    from cellfeed.command.demo import run

    print(run(uri, label, n_epochs=epochs, **dataset.parameters(access, batch_size=batch_size)))


@_command
def info(source: Source, *, as_json: Json = False, access: Access) -> None:
    """Show the cells, columns, measurements, layers and embeddings of a store."""
    from cellfeed.command.info import as_text, describe

    description = describe(source, **access.parameters())
    print(json.dumps(description) if as_json else as_text(description))


@_command
def plan(
    source: Source,
    *,
    dataset: DatasetOptions,
    batch_size: BatchSize = 128,
    label: Label = None,
    mixing: Mixing = None,
    as_json: Json = False,
    access: Access,
) -> None:
    """Show the plan of an epoch and its cost, without reading X."""
    from cellfeed.loader.dataset import ExperimentDataset

    result = ExperimentDataset(source, **dataset.parameters(access, batch_size=batch_size, mixing=mixing)).plan(label)
    print(json.dumps(result.as_dict()) if as_json else result)


@_command
def bench(
    source: Source,
    *,
    dataset: DatasetOptions,
    batch_size: BatchSize = 1024,
    sparse: Sparse = False,
    seconds: Seconds = 30.0,
    as_json: Json = False,
    access: Access,
) -> None:
    """Measure how fast this machine reads a store."""
    from cellfeed.command.bench import run

    parameters = dataset.parameters(access, batch_size=batch_size, return_sparse_X=sparse)
    result = run(source, seconds=seconds, **parameters)
    print(json.dumps(result.as_dict()) if as_json else result)


@_command
def calibrate(
    source: Source,
    *,
    dataset: DatasetOptions,
    batch_size: BatchSize = 128,
    sparse: Sparse = False,
    label: Label = None,
    mixing: Mixing = None,
    speed: Speed = False,
    seconds: Seconds = 5.0,
    picture: Picture = None,
    as_json: Json = False,
    access: Access,
) -> None:
    """Compare settings and recommend the cheapest that reaches --mixing."""
    from cellfeed.command.calibrate import run

    parameters = dataset.parameters(access, batch_size=batch_size, return_sparse_X=sparse)
    result = run(source, label=label, mixing=mixing, speed=speed, seconds=seconds, picture=picture, **parameters)
    print(json.dumps(result.as_dict(), allow_nan=False) if as_json else result)


@_command
def copy(
    sources: Copied,
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder to make, such as cells.zarr.")],
    *,
    options: CopyOptions,
    as_json: Json = False,
    access: Access,
) -> None:
    """Write cells, shuffled, to an AnnData in zarr on a local disk, which is read more than twice as fast.

    If it is interrupted, the same command continues the copy.
    """
    from cellfeed.command.copy import run

    say = functools.partial(Console(stderr=True).print, soft_wrap=True, markup=False, highlight=False)
    try:
        result = run(sources, out, announce=say, **options.parameters(access))
    except KeyboardInterrupt:
        say(f"{out}.partial keeps what was written: the same command continues the copy")
        raise
    print(json.dumps(result.as_dict()) if as_json else result)
