"""Where the tiles of an array lie in its files, and whether they can be read without TileDB.

Everything that is not known here, from encryption to deletions, is left to TileDB: :func:`open_tiles` says so by
returning ``None``, and logs why.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from cellfeed.address import OBJECT_STORES, ArrayAddress
from cellfeed.files import ArrayFiles, LocalFiles
from cellfeed.fragments import (
    LISTS,
    ConsolidatedLater,
    Fragment,
    UnknownLayout,
    parse_fragment,
    visible_fragments,
)
from cellfeed.redact import redacted
from cellfeed.retry import ONCE, Retries
from cellfeed.selection import ArrayGeometry
from cellfeed.vfs import VfsFiles, has_vfs
from cellfeed.zstd import find_zstd

logger = logging.getLogger(__name__)

COMMITS, FRAGMENTS = "__commits", "__fragments"
"""Folders of an array."""

PIPELINES = {(): 0, ("ZSTD",): 1, ("BYTESHUFFLE", "ZSTD"): 2}
"""Filters that are undone here, and the number by which the kernels know them."""


@dataclass(frozen=True, eq=False)
class TileIndex:
    """Where the tiles of an array lie.

    Attributes
    ----------
    files
        Of the array.
    fragments
        Oldest first; in an array that forbids duplicates, no two of them hold a value of one place.
    extent, capacity, n_columns
        Rows of a space tile, values of a data tile, columns of the array.
    how
        How values, rows and columns are packed (see ``PIPELINES``), in the order of ``FIELDS``.
    dtype
        Of the values.
    allows_duplicates
        Whether the array may hold a place more than once.
    """

    files: ArrayFiles
    fragments: tuple[Fragment, ...]
    extent: int
    capacity: int
    n_columns: int
    how: tuple[int, int, int]
    dtype: np.dtype[Any]
    allows_duplicates: bool = True

    @property
    def column_dtype(self) -> type[np.unsignedinteger[Any]]:
        """The smallest type of the columns that hold a value."""
        largest = max((int(one.columns[:, 1].max()) for one in self.fragments), default=0)
        return np.uint16 if largest < 1 << 16 else np.uint32

    @property
    def may_repeat(self) -> bool:
        """Whether a place may have several values of different times: only TileDB selects the newest."""
        return not self.allows_duplicates and any(one.has_timestamps for one in self.fragments)

    @property
    def n_values(self) -> int:
        """Values stored."""
        return sum((len(one.rows) - 1) * self.capacity + one.last_values for one in self.fragments)


def open_tiles(address: ArrayAddress, geometry: ArrayGeometry, retries: Retries = ONCE) -> TileIndex | None:
    """Find the tiles of an array as it was at its timestamp; ``None`` if TileDB has to read it.

    ``retries`` makes the requests, now and later.

    Raises
    ------
    ConsolidatedLater
        If values from before and after the timestamp were consolidated into one fragment: TileDB has to read it, and
        its number of values says nothing about those before the timestamp.
    """
    if os.environ.get("CELLFEED_DIRECT", "1") in ("", "0"):
        return None
    try:
        if find_zstd() is None:
            raise UnknownLayout("no zstd library")
        if not geometry.row_major or any(pipeline not in PIPELINES for pipeline in geometry.filters):
            raise UnknownLayout(f"filters {geometry.filters}, row-major: {geometry.row_major}")
        rows, columns, values = (PIPELINES[pipeline] for pipeline in geometry.filters)
        dtype = np.dtype(np.uint8 if geometry.dtype == "bool" else geometry.dtype)
        files = files_of(address, retries)
        root, commits = files.list_folders("", COMMITS)
        if any(name.startswith("__") and name[2:3].isdigit() for name in root):
            raise UnknownLayout("it has fragments of TileDB before 2.8")
        fragments = _load_fragments(files, tuple(sorted(commits)), address.timestamp_ms, geometry, dtype)
        if any(int(one.columns.max()) >= 1 << 32 for one in fragments):
            raise UnknownLayout("its columns do not fit 32 bits")
        if not geometry.allows_duplicates:
            _check_disjoint(fragments)
    except ConsolidatedLater as reason:
        logger.info("%s is read through TileDB: %s", address, reason)
        raise
    except (UnknownLayout, OSError) as reason:
        logger.info("%s is read through TileDB: %s", address, redacted(reason, address.secrets))
        return None
    return TileIndex(
        files=files,
        fragments=fragments,
        extent=geometry.row_extent,
        capacity=geometry.capacity,
        n_columns=geometry.n_columns,
        how=(values, rows, columns),
        dtype=dtype,
        allows_duplicates=geometry.allows_duplicates,
    )


def files_of(address: ArrayAddress, retries: Retries = ONCE) -> ArrayFiles:
    """Return the files of an array, if they can be had without TileDB's reader."""
    scheme, separator, rest = address.uri.partition("://")
    if not address.is_remote:
        return LocalFiles(Path(rest if separator else address.uri))
    if scheme not in OBJECT_STORES:
        raise UnknownLayout(f"it lies on {scheme}://")
    if not has_vfs():
        raise UnknownLayout("TileDB's file system is not to be called")
    return VfsFiles(address.uri, str(address), address.config, retries)


@lru_cache(maxsize=4)
def _load_fragments(
    files: ArrayFiles, commits: tuple[str, ...], timestamp_ms: int, geometry: ArrayGeometry, dtype: np.dtype[Any]
) -> tuple[Fragment, ...]:
    """Load what the files say once for all passes of a process: what was committed does not change."""
    listed = [name for name in commits if name.endswith(LISTS)]
    texts = dict(zip(listed, files.read_whole([f"{COMMITS}/{name}" for name in listed]), strict=True))
    names = visible_fragments(commits, texts, timestamp_ms)
    metadata = files.read_whole([f"{FRAGMENTS}/{name}/__fragment_metadata.tdb" for name in names])
    max_tiles = geometry.n_rows * geometry.n_columns // geometry.capacity + 1
    found = [
        parse_fragment(name, data, geometry.row_extent, dtype, max_tiles)
        for name, data in zip(names, metadata, strict=True)
    ]
    return tuple(fragment for fragment in found if fragment is not None)


def _check_disjoint(fragments: Sequence[Fragment]) -> None:
    """Refuse fragments that share rows: a place may be in both, and only TileDB knows which value stands."""
    spans = sorted((int(f.rows[:, 0].min()), int(f.rows[:, 1].max())) for f in fragments)
    if any(earlier[1] >= later[0] for earlier, later in zip(spans[:-1], spans[1:], strict=True)):
        raise UnknownLayout("its fragments share rows")
