"""The one place that touches what tiledbsoma keeps private; everything has a public way round.

Private, because the public ``read`` takes one range or a list of points, and a selection is many ranges;
because the number of stored values can be had from the fragments' footers; because a context does not
tell which of its settings the user made; and because the files of an array on an object store can be read through the
library that tiledbsoma brings. Set ``CELLFEED_PUBLIC_API=1`` to use public calls only.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from cellfeed._checks import is_enabled
from cellfeed._joinids import IntArray
from cellfeed.sources.soma.address import SAFE_SETTINGS

COLUMNS = ("soma_dim_0", "soma_dim_1", "soma_data")
"""The columns of a sparse array of two dimensions."""


def _library() -> Any | None:
    """Tiledbsoma's compiled module, if it is there and has what is used here."""
    if is_enabled("CELLFEED_PUBLIC_API", default=False):
        return None
    try:
        from tiledbsoma import pytiledbsoma
    except ImportError:
        return None
    query = getattr(pytiledbsoma, "ManagedQuery", None)
    needed = ("set_layout", "set_dim_ranges_int64", "next")
    return pytiledbsoma if query is not None and all(hasattr(query, name) for name in needed) else None


def library_file() -> str | None:
    """Return the file of a library through which TileDB's C interface can be called; ``None`` if it is not to be used.

    Functions of the libraries with which it was linked are found through it.
    """
    library = _library()
    return None if library is None else str(library.__file__)


def read_pages(array: Any, rows: IntArray, columns: IntArray | None, take: Callable[[pa.Table], None]) -> None:
    """Read ranges of a sparse array, page by page, in the order in which they are stored.

    Parameters
    ----------
    array
        An open ``tiledbsoma.SparseNDArray`` of two dimensions. Several threads may read from one.
    rows, columns
        int64, shape (n, 2): half-open ranges of the two dimensions; ``None`` for all columns.
    take
        Called with each page, a table of :data:`COLUMNS`. A call and not an iterator: a page must be gone
        before the next one gets its buffers.
    """
    library = _library()
    if library is None or not hasattr(array, "_handle"):
        within = () if columns is None else (slice(int(columns[0, 0]), int(columns[-1, 1]) - 1),)
        for start, stop in rows.tolist():
            for page in array.read((slice(start, stop - 1), *within)).tables():
                take(page)
        return
    query = library.ManagedQuery(array._handle)
    query.set_layout(library.ResultOrder.unordered)
    query.set_dim_ranges_int64(COLUMNS[0], [(start, stop - 1) for start, stop in rows.tolist()])
    if columns is not None:
        query.set_dim_ranges_int64(COLUMNS[1], [(start, stop - 1) for start, stop in columns.tolist()])
    with contextlib.suppress(StopIteration):
        while True:
            take(query.next())


def count_values(array: Any) -> int:
    """Count the values stored in an array without reading them where that can be had.

    The public ``nnz`` reads whole arrays whose fragments overlap; the sum over fragments is an upper
    bound that costs nothing, which is what planning needs.
    """
    count = count_in_fragments(array)
    return int(array.nnz) if count is None else count


def count_in_fragments(array: Any) -> int | None:
    """Count the values stored in an array by its fragments' footers; ``None`` if that is not to be had."""
    count = getattr(getattr(array, "_handle", None), "fragment_cell_count", None)
    return int(count()) if _library() is not None and count is not None else None


def safe_context(context: Any) -> Any:
    """Return a context like the user's, or TileDB's default, that does not crash."""
    if context is None:
        return _safe_default()
    given = user_config(context)
    added = {key: value for key, value in SAFE_SETTINGS.items() if key not in given}
    pool: dict[str, Any] = {"threadpool": None} if is_forked() else {}  # the pool's threads are left behind by a fork
    return context.replace(tiledb_config=added, **pool)


_defaults: dict[int, Any] = {}
"""The context of each process id. That of a parent is kept in a forked child: to free it waits for its threads."""


def _safe_default() -> Any:
    """Return one context for all that this process opens without: each has threads of its own.

    The threads of a context exist in the process that made it only: a forked child that uses it waits for ever.
    """
    import tiledbsoma as soma

    known = _defaults.get(os.getpid())
    if known is None:
        known = _defaults.setdefault(os.getpid(), soma.SOMATileDBContext(tiledb_config=dict(SAFE_SETTINGS)))
    return known


_imported_by = os.getpid()


def is_forked() -> bool:
    """Whether this process is a forked child of the one that imported cellfeed."""
    return os.getpid() != _imported_by


def of_this_process(experiment: Any) -> contextlib.AbstractContextManager[Any]:
    """Give an open experiment that this process can read: in a forked child, the same one opened again.

    The parent may have opened it, and then the threads that read it exist in the parent only.
    """
    if not is_forked():
        return contextlib.nullcontext(experiment)
    import tiledbsoma as soma

    timestamp_ms = experiment.tiledb_timestamp_ms
    reopened = soma.Experiment.open(
        experiment.uri, context=safe_context(experiment.context), tiledb_timestamp=timestamp_ms
    )
    return contextlib.closing(reopened)


def user_config(context: Any) -> dict[str, str]:
    """Return the TileDB settings of a context that are not TileDB's own defaults.

    A context that is in use lists all settings; those that were given when it was made are known to
    tiledbsoma alone.
    """
    config = {key: str(value) for key, value in context.tiledb_config.items()}
    given = getattr(context, "_initial_config", None)
    if _library() is not None and isinstance(given, dict):
        return {key: str(value) for key, value in given.items()}
    default = _default_config()
    return {key: value for key, value in config.items() if default.get(key) != value}


@functools.cache
def _default_config() -> dict[str, str]:
    """Return TileDB's own settings: to ask for them takes a context, with its threads."""
    import tiledbsoma as soma

    bare = soma.SOMATileDBContext()
    _ = bare.native_context  # from now on it lists all settings, as a context in use does
    return {key: str(value) for key, value in bare.tiledb_config.items()}


def parts_of(axis_query: Any) -> tuple[Any, Any] | None:
    """Return the queries of obs and of var, as ``tiledbsoma.AxisQuery``, of which a query was made, if it has them."""
    queries = getattr(axis_query, "_matrix_axis_query", None)
    obs, var = getattr(queries, "obs", None), getattr(queries, "var", None)
    return None if obs is None or var is None else (obs, var)


def describe_queries(axis_query: Any) -> tuple[Any, Any]:
    """Say in plain values what a query asks of obs and of var; ``None`` for all, and where a query does not tell."""
    obs, var = parts_of(axis_query) or (None, None)
    return _describe(obs), _describe(var)


def _describe(query: Any) -> dict[str, str | None] | None:
    value_filter, coords = getattr(query, "value_filter", None), getattr(query, "coords", ())
    value_filter = getattr(value_filter, "given", value_filter)  # as the user wrote it, before it was fitted
    if value_filter is None and not len(coords):
        return None
    shown = repr(coords) if len(coords) else None
    return {"value_filter": value_filter, "coords": shown if shown is None or len(shown) < 200 else shown[:200] + "..."}
