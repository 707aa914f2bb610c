"""The ``cellfeed`` command: thin shells over the library."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any, NoReturn

from cellfeed.address import RETRY_DEADLINE_S
from cellfeed.errors import CellfeedError
from cellfeed.redact import redacted


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        with _showing_retries():
            options.run(options)
    except (CellfeedError, OSError, ValueError) as error:
        print(f"cellfeed: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


class _OnePerSecond(logging.Filter):
    """Lets one message per second pass: several requests fail together."""

    last = -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        if record.created - self.last < 1:
            return False
        self.last = record.created
        return True


@contextlib.contextmanager
def _showing_retries() -> Iterator[None]:
    """Write a line to stderr for attempts that failed, with the time that is left."""
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


class _Parser(argparse.ArgumentParser):
    """Repeats arguments that it does not understand, but no credentials in them."""

    def error(self, message: str) -> NoReturn:
        super().error(redacted(message))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="cellfeed", description="Feed single cells from TileDB-SOMA to PyTorch.")
    parser.add_argument("--version", action="version", version=f"cellfeed {version('cellfeed')}")
    commands = parser.add_subparsers(required=True, metavar="command")

    info = commands.add_parser("info", help="say what a store holds: cells, columns, measurements, layers")
    info.add_argument("uri", help="a SOMA experiment")
    info.add_argument("--json", action="store_true", help="print it for machines")
    _add_access(info)
    info.set_defaults(run=_info)

    demo = commands.add_parser("demo", help="train a classifier of cell types on real cells, or on your own store")
    demo.add_argument("--uri", help="a SOMA experiment (default: 700 blood cells that scanpy ships)")
    demo.add_argument("--label", default="bulk_labels", help="the column of obs to predict (default: %(default)s)")
    demo.add_argument("--epochs", type=int, default=20, help="passes over the cells (default: %(default)s)")
    _add_selection(demo, batch_size=64)
    demo.set_defaults(run=_demo)

    plan = commands.add_parser("plan", help="say what reading a store will do, before reading it")
    plan.add_argument("uri", help="a SOMA experiment")
    plan.add_argument("--label", help="the column of obs to mix, such as dataset_id (default: the worst labels)")
    plan.add_argument("--mixing", help="effective over nominal batch size to reach, such as 0.9 or 90%%")
    plan.add_argument("--json", action="store_true", help="print figures for machines")
    _add_selection(plan, batch_size=128)
    plan.set_defaults(run=_plan)

    bench = commands.add_parser("bench", help="measure how fast a store is read, on this machine")
    bench.add_argument("uri", help="a SOMA experiment")
    bench.add_argument("--sparse", action="store_true", help="CSR minibatches (default: dense)")
    bench.add_argument("--seconds", type=float, default=30.0, help="stop after so long (default: %(default)s)")
    bench.add_argument("--json", action="store_true", help="print figures for machines")
    _add_selection(bench, batch_size=1024)
    bench.set_defaults(run=_bench)

    _add_calibrate(commands.add_parser("calibrate", help="compare settings: how well they mix cells, and at what cost"))
    return parser


def _add_calibrate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("uri", help="a SOMA experiment")
    parser.add_argument("--label", help="the column of obs to mix, such as dataset_id (default: the worst labels)")
    parser.add_argument("--mixing", help="choose by this effective over nominal batch size, such as 0.9 or 90%%")
    parser.add_argument("--sparse", action="store_true", help="CSR minibatches (default: dense)")
    parser.add_argument("--speed", action="store_true", help="measure each setting (default: read no X)")
    parser.add_argument("--seconds", type=float, default=5.0, help="measure for so long each (default: %(default)s)")
    parser.add_argument("--picture", metavar="FILE", help="draw it: a .png, .svg or .pdf")
    parser.add_argument("--json", action="store_true", help="print figures for machines")
    _add_selection(parser, batch_size=128)
    parser.set_defaults(run=_calibrate)


def _add_selection(parser: argparse.ArgumentParser, *, batch_size: int) -> None:
    parser.add_argument("--measurement-name", default="RNA", help="default: %(default)s")
    parser.add_argument("--x-name", default="raw", help="the layer of X (default: %(default)s)")
    parser.add_argument("--obs-filter", help="a value filter on obs, such as \"tissue == 'lung'\"")
    parser.add_argument(
        "--batch-size", type=int, default=batch_size, help="cells in a minibatch (default: %(default)s)"
    )
    parser.add_argument("--memory-budget", default="2 GiB", help="for reading and shuffling (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    _add_access(parser)


def _add_access(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--region", help="the region of a store on S3, such as us-west-2, where the Census is")
    parser.add_argument(
        "--anonymous", action="store_true", help="send no credentials: for buckets that anybody may read"
    )
    parser.add_argument(
        "--retry-deadline", type=float, default=RETRY_DEADLINE_S, metavar="SECONDS",
        help="how long requests to an object store are tried again (default: %(default)g)",
    )  # fmt: skip


def _context(options: argparse.Namespace) -> Any:
    """Return a context with the settings that were given; ``None`` without."""
    import tiledbsoma as soma

    settings = {"vfs.s3.region": options.region, "vfs.s3.no_sign_request": "true" if options.anonymous else None}
    given = {name: value for name, value in settings.items() if value is not None}
    return soma.SOMATileDBContext(tiledb_config=given) if given else None


def _selection(options: argparse.Namespace) -> dict[str, object]:
    return {
        "measurement_name": options.measurement_name,
        "X_name": options.x_name,
        "obs_query": options.obs_filter or None,
        "batch_size": options.batch_size,
        "memory_budget": options.memory_budget,
        "seed": options.seed,
        "context": _context(options),
        "retry_deadline_s": options.retry_deadline,
    }


def _info(options: argparse.Namespace) -> None:
    from cellfeed.command import info

    found = info.describe(options.uri, _context(options), retry_deadline_s=options.retry_deadline)
    print(json.dumps(found) if options.json else info.as_text(found))


def _demo(options: argparse.Namespace) -> None:
    from cellfeed.command import demo

    chosen: dict[str, object] = _selection(options)
    print(demo.run(options.uri, options.label, n_epochs=options.epochs, **chosen))  # type: ignore[arg-type]


def _plan(options: argparse.Namespace) -> None:
    from cellfeed.dataset import ExperimentDataset

    chosen: dict[str, Any] = _selection(options)
    plan = ExperimentDataset(options.uri, mixing=options.mixing, **chosen).plan(options.label)
    print(json.dumps(plan.as_dict()) if options.json else plan)


def _bench(options: argparse.Namespace) -> None:
    from cellfeed.command import bench

    chosen: dict[str, Any] = _selection(options)
    result = bench.run(options.uri, seconds=options.seconds, return_sparse_X=options.sparse, **chosen)
    print(json.dumps(result.as_dict()) if options.json else result)


def _calibrate(options: argparse.Namespace) -> None:
    from cellfeed.command import calibrate

    chosen: dict[str, Any] = _selection(options)
    result = calibrate.run(
        options.uri,
        label=options.label,
        mixing=options.mixing,
        speed=options.speed,
        seconds=options.seconds,
        picture=options.picture,
        return_sparse_X=options.sparse,
        **chosen,
    )
    print(json.dumps(result.as_dict(), allow_nan=False) if options.json else result)
