"""The address of an array, with all that is needed to open it in any process."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from cellfeed.errors import SelectionError
from cellfeed.sources.redact import public_uri, secrets_of
from cellfeed.sources.retry import NO_RETRY, RETRY_DEADLINE_S, Retries
from cellfeed.stats import Meter

SAFE_SETTINGS = {
    # TileDB merges the tiles of fragments in threads that may outlive the query and use freed memory: about one query
    # in 50,000 crashed the process. Fixed after TileDB 2.30: https://github.com/TileDB-Inc/TileDB/pull/5723
    "sm.query.sparse_global_order.preprocess_tile_merge": "0",
}
"""TileDB settings for all reads; settings of the user's context take precedence."""

READ_SETTINGS = {
    # If true, each finished query returns free memory to the system, and the next query faults it in again.
    "sm.mem.malloc_trim": "false",
    # Each reading thread of cellfeed runs a query with one thread: queries overlap, the steps of one query do not.
    "sm.compute_concurrency_level": "1",
}
"""TileDB settings for reads of X."""

LOCAL_SETTINGS = {
    # Tiles stay in the CPU cache between decoding and copying. On object stores it would cause tiny requests.
    "sm.mem.tile_upper_memory_limit": str(16 << 20),
}
"""TileDB settings for reads of X on a local disk."""

REMOTE_SETTINGS = {
    # Number of threads that wait for responses; the default is the number of cores.
    "sm.io_concurrency_level": "16",
    "vfs.s3.connect_timeout_ms": "3000",
}
"""TileDB settings for reads of X on an object store."""

OBJECT_STORES = ("s3", "gcs", "gs", "azure")
"""Schemes of URIs of object stores."""


def is_remote(uri: str) -> bool:
    """Whether a URI points to a store that is not on a local disk.

    Examples
    --------
    >>> is_remote("s3://bucket/cells"), is_remote("file:///data/cells"), is_remote("cells")
    (True, False, False)
    """
    scheme, separator, _ = uri.partition("://")
    return bool(separator) and scheme != "file"


def locate(uri: str | PathLike[str]) -> str:
    """Return the URI for TileDB: a URI does not change, a local path becomes absolute.

    TileDB reads the working folder once per process and resolves all relative paths against it. A ``~`` is not
    expanded, as in TileDB and zarr.

    Parameters
    ----------
    uri
        A URI with a scheme, or a local path.

    Returns
    -------
    str
        ``uri`` itself if it has a scheme, such as ``s3://`` or ``file://``; otherwise the absolute path.

    Raises
    ------
    SelectionError
        If the text is empty, a ``Path`` made of a URI, which has lost a slash, or a path that TileDB cannot read.

    Examples
    --------
    >>> locate("s3://bucket/cells"), locate("cells") == f"{Path.cwd()}/cells"
    ('s3://bucket/cells', True)
    """
    text = str(uri)
    if not text:
        raise SelectionError("a URI or path is empty text; give the folder or the URI of a SOMA experiment")
    if "://" in text:
        return text
    if lost := re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/(?!/)", text):
        scheme = lost[1]
        raise SelectionError(f"{text!r} has lost a slash, as a pathlib.Path of a URI has; give text: '{scheme}://...'")
    path = str(Path(text).absolute())
    if special := [sign for sign in "#?;" if sign in path]:
        raise SelectionError(
            f"{text!r} has {special[0]!r} in its path, where TileDB ends the path; rename the folder, or give a link "
            f"to it"
        )
    return path


@dataclass(frozen=True, repr=False)
class ArrayAddress:
    """URI, timestamp, TileDB settings of the user and retry deadline of an array; picklable.

    The settings and the URI may contain credentials: the settings are never shown, and the URI is shown without them.
    """

    uri: str
    timestamp_ms: int
    config: dict[str, str]
    retry_deadline_s: float = RETRY_DEADLINE_S

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r}, timestamp_ms={self.timestamp_ms})"

    def __str__(self) -> str:
        return public_uri(self.uri)

    @property
    def secrets(self) -> frozenset[str]:
        """Texts that must not be shown."""
        return secrets_of(self.uri, self.config)

    @property
    def is_remote(self) -> bool:
        """Whether the array is not on a local disk."""
        return is_remote(self.uri)

    def retries(self, *, n_threads: int = 1, meter: Meter | None = None, was_reached: bool = True) -> Retries:
        """Create a :class:`~cellfeed.sources.retry.Retries` object; close it after use. Local reads are not retried.

        ``was_reached`` is True by default because the arrays of a selection have been read.
        """
        if not self.is_remote:
            return NO_RETRY
        return Retries(
            self.retry_deadline_s, n_threads=n_threads, meter=meter, secrets=self.secrets, was_reached=was_reached
        )

    def open(self, buffer_bytes: int) -> Any:
        """Open the array with the user's settings, and with settings for reads where the user has none."""
        import tiledbsoma as soma

        fitting = REMOTE_SETTINGS if self.is_remote else LOCAL_SETTINGS
        context = self.context({"soma.init_buffer_bytes": str(buffer_bytes), **READ_SETTINGS, **fitting})
        return soma.SparseNDArray.open(self.uri, context=context, tiledb_timestamp=self.timestamp_ms)

    def context(self, settings: Mapping[str, str]) -> Any:
        """Create a context with the user's settings, and with the given ones where the user has none."""
        import tiledbsoma as soma

        return soma.SOMATileDBContext(tiledb_config={**SAFE_SETTINGS, **settings, **self.config})
