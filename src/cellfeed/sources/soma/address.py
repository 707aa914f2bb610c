"""Where an array is, and all that is needed to open it again."""

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
    # TileDB merges the tiles of fragments in threads that may outlive the query and then use what is freed: about one
    # query in 50,000 ended the process. Mended behind 2.30: https://github.com/TileDB-Inc/TileDB/pull/5723
    "sm.query.sparse_global_order.preprocess_tile_merge": "0",
}
"""TileDB settings for whatever is read, used where the user's context does not set them."""

READ_SETTINGS = {
    # Without it every finished query gives all free memory back to the system and faults it in again.
    "sm.mem.malloc_trim": "false",
    # Threads of ours each run a query of one thread: queries overlap, the segments of one query do not.
    "sm.compute_concurrency_level": "1",
}
"""Those for reading X."""

LOCAL_SETTINGS = {
    # Keeps tiles in the cache between decoding and copying; on object stores it would make tiny requests.
    "sm.mem.tile_upper_memory_limit": str(16 << 20),
}
"""Those on a local disk."""

REMOTE_SETTINGS = {
    # Threads that wait for responses; there are as many as cores otherwise.
    "sm.io_concurrency_level": "16",
    "vfs.s3.connect_timeout_ms": "3000",
}
"""Those on an object store."""

OBJECT_STORES = ("s3", "gcs", "gs", "azure")
"""Schemes of URIs of object stores."""


def is_remote(uri: str) -> bool:
    """Whether a URI is none of a local disk.

    Examples
    --------
    >>> is_remote("s3://bucket/cells"), is_remote("file:///data/cells"), is_remote("cells")
    (True, False, False)
    """
    scheme, separator, _ = uri.partition("://")
    return bool(separator) and scheme != "file"


def locate(uri: str | PathLike[str]) -> str:
    """Return the URI that TileDB receives: a URI as it is, a local path as an absolute one.

    TileDB asks for the working folder once per process, and resolves relative paths against that folder for ever.
    A ``~`` is a name like any other, as it is for TileDB and zarr.

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
        If it is empty, a ``Path`` that was made of a URI, which has lost a slash, or a path that TileDB cannot read.

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
    if odd := [sign for sign in "#?;" if sign in path]:
        raise SelectionError(
            f"{text!r} has {odd[0]!r} in its path, where TileDB ends the path; rename the folder, or give a link to it"
        )
    return path


@dataclass(frozen=True, repr=False)
class ArrayAddress:
    """What is needed to open the array again, in this process or another.

    The user's own configuration and timestamp are part of it. Both configuration and URI may hold credentials: the
    one is not shown, and the other without them.
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
        """What must not be shown of it."""
        return secrets_of(self.uri, self.config)

    @property
    def is_remote(self) -> bool:
        """Whether it is on no local disk."""
        return is_remote(self.uri)

    def retries(self, *, n_threads: int = 1, meter: Meter | None = None, was_reached: bool = True) -> Retries:
        """Make what tries reading it again, to be closed; what fails on a local disk is not tried again.

        ``was_reached`` is that of :class:`~cellfeed.sources.retry.Retries`: the arrays of a selection have been read.
        """
        if not self.is_remote:
            return NO_RETRY
        return Retries(
            self.retry_deadline_s, n_threads=n_threads, meter=meter, secrets=self.secrets, was_reached=was_reached
        )

    def open(self, buffer_bytes: int) -> Any:
        """Open the array as the user's experiment would, with settings for reading added."""
        import tiledbsoma as soma

        fitting = REMOTE_SETTINGS if self.is_remote else LOCAL_SETTINGS
        context = self.context({"soma.init_buffer_bytes": str(buffer_bytes), **READ_SETTINGS, **fitting})
        return soma.SparseNDArray.open(self.uri, context=context, tiledb_timestamp=self.timestamp_ms)

    def context(self, settings: Mapping[str, str]) -> Any:
        """Make a context like the user's, with settings added where that has none."""
        import tiledbsoma as soma

        return soma.SOMATileDBContext(tiledb_config={**SAFE_SETTINGS, **settings, **self.config})
