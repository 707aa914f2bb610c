"""The only module that uses private parts of tiledbsoma; each use has a public replacement.

The private parts are needed because the public ``read`` takes one range or a list of points, and a selection has many
ranges; because the footers of fragments contain the number of stored values; because a context does not show which of
its settings the user made; and because tiledbsoma's library can read the files of an array on an object store. Set
``CELLFEED_PUBLIC_API=1`` to use public calls only.
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
    """Return tiledbsoma's compiled module; ``None`` if it lacks a function that is used here, or must not be used."""
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
    """Return the file of a library that is linked with TileDB's C interface; ``None`` if it must not be used."""
    library = _library()
    return None if library is None else str(library.__file__)


def read_pages(array: Any, rows: IntArray, columns: IntArray | None, take: Callable[[pa.Table], None]) -> None:
    """Read ranges of a sparse array, page by page, in the order of storage.

    Parameters
    ----------
    array
        An open ``tiledbsoma.SparseNDArray`` of two dimensions. Several threads may share it.
    rows, columns
        int64, shape (n, 2): half-open ranges of the two dimensions; ``None`` for all columns.
    take
        Receives each page, a table of :data:`COLUMNS`. It is a function because an iterator would keep a page alive
        while the next page needs its buffers.
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
    """Return the number of values stored in an array, or an upper bound.

    The public ``nnz`` reads the whole array if fragments overlap. The sum over the fragments is an upper bound that
    costs nothing, and planning needs no more.
    """
    count = count_in_fragments(array)
    return int(array.nnz) if count is None else count


def count_in_fragments(array: Any) -> int | None:
    """Return the number of values in the footers of an array's fragments; ``None`` if it cannot be read."""
    count = getattr(getattr(array, "_handle", None), "fragment_cell_count", None)
    return int(count()) if _library() is not None and count is not None else None


def safe_context(context: Any) -> Any:
    """Return the user's context, or TileDB's default, with the settings that avoid a crash of TileDB."""
    if context is None:
        return _safe_default()
    given = user_config(context)
    added = {key: value for key, value in SAFE_SETTINGS.items() if key not in given}
    pool: dict[str, Any] = {"threadpool": None} if is_forked() else {}  # a fork does not copy the pool's threads
    return context.replace(tiledb_config=added, **pool)


_defaults: dict[int, Any] = {}
"""Default context by process id. A forked child keeps its parent's context: freeing it would wait for its threads."""


def _safe_default() -> Any:
    """Return the context of this process for everything that is opened without a user's context.

    It is shared because each context has its own threads. They exist only in the process that made the context: a
    forked child that used it would hang.
    """
    import tiledbsoma as soma

    context = _defaults.get(os.getpid())
    if context is None:
        context = _defaults.setdefault(os.getpid(), soma.SOMATileDBContext(tiledb_config=dict(SAFE_SETTINGS)))
    return context


_imported_by = os.getpid()


def is_forked() -> bool:
    """Whether this process is a forked child of the one that imported cellfeed."""
    return os.getpid() != _imported_by


def of_this_process(experiment: Any) -> contextlib.AbstractContextManager[Any]:
    """Yield an experiment that this process can read: in a forked child, the given one is opened again.

    If the parent opened the experiment, the threads that read it exist only in the parent.
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
    """Return the TileDB settings of a context that are not TileDB's defaults.

    A context in use lists all settings; only tiledbsoma knows the settings that the user passed to it.
    """
    config = {key: str(value) for key, value in context.tiledb_config.items()}
    given = getattr(context, "_initial_config", None)
    if _library() is not None and isinstance(given, dict):
        return {key: str(value) for key, value in given.items()}
    default = _default_config()
    return {key: value for key, value in config.items() if default.get(key) != value}


@functools.cache
def _default_config() -> dict[str, str]:
    """Return TileDB's default settings; cached, because reading them starts the threads of a context."""
    import tiledbsoma as soma

    bare = soma.SOMATileDBContext()
    _ = bare.native_context  # only a context in use lists all settings
    return {key: str(value) for key, value in bare.tiledb_config.items()}


def parts_of(axis_query: Any) -> tuple[Any, Any] | None:
    """Return the ``tiledbsoma.AxisQuery`` of obs and of var in a query; ``None`` if they cannot be read."""
    queries = getattr(axis_query, "_matrix_axis_query", None)
    obs, var = getattr(queries, "obs", None), getattr(queries, "var", None)
    return None if obs is None or var is None else (obs, var)


def describe_queries(axis_query: Any) -> tuple[Any, Any]:
    """Return the queries of obs and of var as plain values; ``None`` for all rows, and for unknown queries."""
    obs, var = parts_of(axis_query) or (None, None)
    return _describe(obs), _describe(var)


def _describe(query: Any) -> dict[str, str | None] | None:
    value_filter, coords = getattr(query, "value_filter", None), getattr(query, "coords", ())
    value_filter = getattr(
        value_filter, "given", value_filter
    )  # the text of the user, before it was fitted to the columns
    if value_filter is None and not len(coords):
        return None
    shown = repr(coords) if len(coords) else None
    return {"value_filter": value_filter, "coords": shown if shown is None or len(shown) < 200 else shown[:200] + "..."}
