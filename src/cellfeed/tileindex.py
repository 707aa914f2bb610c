"""Where the tiles of an array lie on a local disk, and whether they can be read without TileDB.

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

from cellfeed.fragments import Fragment, UnknownLayout, parse_fragment, visible_fragments
from cellfeed.reader import ArrayAddress
from cellfeed.selection import ArrayGeometry
from cellfeed.zstd import find_zstd

logger = logging.getLogger(__name__)

PIPELINES = {(): 0, ("ZSTD",): 1, ("BYTESHUFFLE", "ZSTD"): 2}
"""Filters that are undone here, and the number by which the kernels know them."""


@dataclass(frozen=True, eq=False)
class TileIndex:
    """Where the tiles of an array lie.

    Attributes
    ----------
    folder
        Of its fragments.
    fragments
        Oldest first; an array that forbids duplicates has at most one value at any place of them.
    extent, capacity, n_columns
        Rows of a space tile, values of a data tile, columns of the array.
    how
        How values, rows and columns are packed (see ``PIPELINES``), in the order of ``FIELDS``.
    dtype
        Of the values.
    """

    folder: Path
    fragments: tuple[Fragment, ...]
    extent: int
    capacity: int
    n_columns: int
    how: tuple[int, int, int]
    dtype: np.dtype[Any]

    @property
    def n_values(self) -> int:
        """Values stored."""
        return sum((len(one.rows) - 1) * self.capacity + one.last_values for one in self.fragments)


def open_tiles(address: ArrayAddress, geometry: ArrayGeometry) -> TileIndex | None:
    """Find the tiles of an array as it was at its timestamp; ``None`` if TileDB has to read it."""
    if os.environ.get("CELLFEED_DIRECT", "1") in ("", "0"):
        return None
    try:
        if find_zstd() is None:
            raise UnknownLayout("no zstd library")
        if not geometry.row_major or any(pipeline not in PIPELINES for pipeline in geometry.filters):
            raise UnknownLayout(f"filters {geometry.filters}, row-major: {geometry.row_major}")
        if geometry.n_columns > 1 << 32:
            raise UnknownLayout(f"it has {geometry.n_columns} columns")
        rows, columns, values = (PIPELINES[pipeline] for pipeline in geometry.filters)
        array = local_path(address.uri)
        dtype = np.dtype(np.uint8 if geometry.dtype == "bool" else geometry.dtype)
        commits = tuple(sorted(path.name for path in (array / "__commits").iterdir()))
        fragments = _load_fragments(array, commits, address.timestamp_ms, geometry.row_extent, dtype)
        if not geometry.allows_duplicates:
            _check_disjoint(fragments)
    except (UnknownLayout, OSError) as reason:
        logger.info("%s is read through TileDB: %s", address, reason)
        return None
    return TileIndex(
        folder=array / "__fragments",
        fragments=fragments,
        extent=geometry.row_extent,
        capacity=geometry.capacity,
        n_columns=geometry.n_columns,
        how=(values, rows, columns),
        dtype=dtype,
    )


def local_path(uri: str) -> Path:
    """Path of an array on a local disk."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return Path(uri)
    if scheme != "file":
        raise UnknownLayout(f"it lies on {scheme}://")
    return Path(rest)


@lru_cache(maxsize=4)
def _load_fragments(
    array: Path, commits: tuple[str, ...], timestamp_ms: int, extent: int, dtype: np.dtype[Any]
) -> tuple[Fragment, ...]:
    """Load what the files say once for all passes of a process: what was committed does not change."""
    texts = {name: (array / "__commits" / name).read_bytes() for name in commits if name.endswith((".con", ".ign"))}
    if any(path.name.startswith("__") and path.name[2:3].isdigit() for path in array.iterdir()):
        raise UnknownLayout("it has fragments of TileDB before 2.8")
    found = []
    for name in visible_fragments(commits, texts, timestamp_ms):
        metadata = (array / "__fragments" / name / "__fragment_metadata.tdb").read_bytes()
        found.append(parse_fragment(name, metadata, extent, dtype))
    return tuple(fragment for fragment in found if fragment is not None)


def _check_disjoint(fragments: Sequence[Fragment]) -> None:
    """Refuse fragments that share rows: a place may be in both, and only TileDB knows which value stands."""
    spans = sorted((int(f.rows[:, 0].min()), int(f.rows[:, 1].max())) for f in fragments)
    if any(earlier[1] >= later[0] for earlier, later in zip(spans[:-1], spans[1:], strict=True)):
        raise UnknownLayout("its fragments share rows")
