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
from cellfeed.errors import CellfeedError
from cellfeed.sources.redact import redacted
from cellfeed.sources.retry import RETRY_DEADLINE_S

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


# ---------------------------------------------------------------------- options


def _option(panel: str, text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


@dataclasses.dataclass(kw_only=True)
class Access:
    """Options for opening a store."""

    region: Annotated[str | None, _option("Access", "Region of a store on S3; us-west-2 for the Census.")] = None
    anonymous: Annotated[bool, _option("Access", "Send no credentials: for public buckets.", "--anonymous")] = False
    retry_deadline: Annotated[
        float, _option("Access", "Duration of retries of a request to an object store.", metavar="SECONDS")
    ] = RETRY_DEADLINE_S

    def parameters(self) -> dict[str, Any]:
        """Return the options as parameters of :class:`cellfeed.ExperimentDataset`."""
        import tiledbsoma as soma

        settings = {"vfs.s3.region": self.region, "vfs.s3.no_sign_request": "true" if self.anonymous else None}
        config = {name: value for name, value in settings.items() if value is not None}
        context = soma.SOMATileDBContext(tiledb_config=config) if config else None
        return {"context": context, "retry_deadline_s": self.retry_deadline}


@dataclasses.dataclass(kw_only=True)
class DatasetOptions:
    """Options with the names of parameters of :class:`cellfeed.ExperimentDataset`."""

    measurement_name: Annotated[str, _option("Cells", "Measurement of the experiment.")] = "RNA"
    X_name: Annotated[str, _option("Cells", "Layer of X.", "--x-name")] = "raw"
    obs_query: Annotated[
        str | None,
        _option("Cells", "Value filter on obs: \"tissue == 'lung'\".", "--obs-filter", callback=lambda it: it or None),
    ] = None
    memory_budget: Annotated[str, _option("Reading", "Memory for reading and shuffling.")] = "2 GiB"
    seed: Annotated[int, _option("Reading", "Seed of the order of cells.")] = 0

    def parameters(self, access: Access, **others: Any) -> dict[str, Any]:
        """Return all options of a command as parameters of the dataset."""
        return {**others, **dataclasses.asdict(self), **access.parameters()}


def _check_picture(file: str | None) -> str | None:
    """Raise an error, before any work, if the picture cannot be drawn."""
    from cellfeed.command.plot import check_file

    try:
        return None if file is None else str(check_file(file))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


Source = Annotated[str, typer.Argument(metavar="SOURCE", help="Folder or URI of a SOMA experiment.")]
BatchSize = Annotated[int, _option("Reading", "Cells per minibatch.")]
Sparse = Annotated[bool, _option("Reading", "Make CSR minibatches instead of dense ones.", "--sparse")]
Label = Annotated[str | None, _option("Mixing", "Column of obs to mix, such as dataset_id. Default: the worst case.")]
Mixing = Annotated[str | None, _option("Mixing", "Least effective over nominal batch size: 0.9 or 90%.")]
Speed = Annotated[bool, _option("Measuring", "Read X to measure each setting.", "--speed")]
Seconds = Annotated[float, _option("Measuring", "Duration from the first minibatch on.")]
Picture = Annotated[
    str | None, _option("Output", "Draw a .png, .svg or .pdf file.", metavar="FILE", callback=_check_picture)
]
Json = Annotated[bool, _option("Output", "Print JSON.", "--json")]


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
