"""Fragments of a TileDB array: which of them a reader sees, and where their data tiles lie. No IO.

The format is specified in https://github.com/TileDB-Inc/TileDB/blob/main/format_spec/array_file_hierarchy.md. Arrays
that use anything else raise :class:`UnknownLayout` and are read through TileDB.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cellfeed._joinids import IntArray, merge_runs

FIELDS = ("a0", "d0", "d1")
"""Names of the files of an array with one attribute and two dimensions: values, rows, columns."""

LISTS = (".con", ".ign", ".vac")
"""Suffixes of commits that list fragments: consolidated commits, ignored commits, fragments to be vacuumed."""

_NAME = re.compile(r"__(\d+)_(\d+)_[0-9a-f]+(?:_(\d+))?")
"""Name of a fragment: first and last timestamp in milliseconds, a unique identifier, version of the format."""

UNKNOWN_SUMS = np.array([2**63 - 1, -(2**63)], np.int64)
"""Sums of integers that TileDB records if the sum overflows int64."""


class UnknownLayout(Exception):  # noqa: N818 - not an error: TileDB reads the array
    """The array uses a format or feature that is not supported here."""


class ConsolidatedLater(UnknownLayout):
    """A fragment has values from before and after the timestamp; only TileDB reads the time of each value."""


@dataclass(frozen=True, eq=False)
class Fragment:
    """Data tiles of one fragment: where they lie, and what their writer recorded.

    Attributes
    ----------
    name
        Name of its folder.
    last_values
        Number of values in the last tile; all other tiles are full.
    smallest, largest
        Type of X, shape (n_tiles,): smallest and largest value of each tile. They are not exact if a tile has NaN.
    rows, columns
        uint32 or int64, shape (n_tiles, 2): smallest and largest row and column of each tile, inclusive.
    first_block, last_block
        int32, shape (n_tiles,), ascending: row block of each tile's first and last row.
    offsets
        int64, shape (n_tiles + 1,), for each of ``FIELDS``: where tiles begin in the file, and where the last one ends.
    row_sums, column_sums, value_sums
        int64, or float64 for values that are floats, shape (n_tiles,): recorded sum of each tile. Sums of integers are
        modulo 2**64; :data:`UNKNOWN_SUMS` denote an unknown sum.
    has_timestamps
        Whether the fragment was consolidated from others and keeps the time of each value. In an array without
        duplicates, such a fragment may have several values of one place.
    verified
        bool, shape (n_tiles,), set by readers: tiles of which this process has verified all columns and values.
    """

    name: str
    last_values: int
    smallest: npt.NDArray[Any]
    largest: npt.NDArray[Any]
    rows: npt.NDArray[Any]
    columns: npt.NDArray[Any]
    first_block: npt.NDArray[np.int32]
    last_block: npt.NDArray[np.int32]
    offsets: tuple[IntArray, IntArray, IntArray]
    row_sums: IntArray
    column_sums: IntArray
    value_sums: npt.NDArray[Any]
    has_timestamps: bool
    verified: npt.NDArray[np.bool_]

    def tiles_of(self, rows: IntArray, columns: IntArray | None, extent: int) -> IntArray:
        """Return ascending indices of the tiles that may have values in half-open ranges of rows and columns.

        ``rows`` and ``columns`` are int64, shape (n_ranges, 2).
        """
        ranges = merge_runs(rows, max_gap=extent).tolist()
        tiles = np.unique(np.concatenate([self._tiles_of_range(start, stop, extent) for start, stop in ranges]))
        tiles = tiles[_intersects(self.rows[tiles], rows)]
        return tiles if columns is None else tiles[_intersects(self.columns[tiles], columns)]

    def _tiles_of_range(self, start: int, stop: int, extent: int) -> IntArray:
        """Return the tiles of the row blocks that intersect a range of rows, by binary search."""
        first = int(np.searchsorted(self.last_block, start // extent))
        return np.arange(first, int(np.searchsorted(self.first_block, (stop - 1) // extent, side="right")))


def _intersects(spans: IntArray, ranges: IntArray) -> npt.NDArray[np.bool_]:
    """Return whether inclusive spans, shape (n, 2), intersect any of the ascending half-open ranges, shape (m, 2)."""
    # The first range that ends after the span begins.
    nearest = np.searchsorted(ranges[:, 1], spans[:, 0], side="right")
    intersects: npt.NDArray[np.bool_] = nearest < len(ranges)
    intersects[intersects] = ranges[nearest[intersects], 0] <= spans[intersects, 1]
    return intersects


def visible_fragments(commits: Iterable[str], texts: Mapping[str, bytes], timestamp_ms: int) -> list[str]:
    """Return the names of the fragments that a reader at ``timestamp_ms`` sees, oldest first.

    Parameters
    ----------
    commits
        Names of the files in the array's ``__commits`` folder.
    texts
        Contents of the files whose names end in one of :data:`LISTS`.

    Raises
    ------
    ConsolidatedLater
        If a fragment was consolidated from writes before and after ``timestamp_ms``.
    UnknownLayout
        If a commit is of an unknown kind.
    """
    names: set[str] = set()
    ignored: set[str] = set()
    replaced: dict[str, list[str]] = {}  # consolidated fragment: its sources, which are not vacuumed yet
    for commit in commits:
        stem, _, kind = commit.rpartition(".")
        if kind == "wrt":
            names.add(stem)
        elif kind == "con":
            names.update(_listed(texts[commit], ".wrt"))
        elif kind == "ign":
            ignored.update(_listed(texts[commit], ".wrt"))
        elif kind == "vac":
            replaced[stem] = _listed(texts[commit], "")
        else:
            raise UnknownLayout(f"commits hold {commit!r}")
    times = {name: _times(name) for name in names - ignored}
    for name, (begin, end) in times.items():
        if begin <= timestamp_ms < end:
            raise ConsolidatedLater(f"fragment {name!r} was consolidated over the timestamp {timestamp_ms}")
    for name in replaced.keys() & times.keys():
        if times[name][1] <= timestamp_ms:
            ignored.update(replaced[name])
    visible = sorted((times[name], name) for name in times.keys() - ignored if times[name][1] <= timestamp_ms)
    return [name for _, name in visible]


def _times(name: str) -> tuple[int, int]:
    """Return the first and the last timestamp of a fragment in milliseconds."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise UnknownLayout(f"fragment {name!r}")
    return int(match[1]), int(match[2])


def _listed(text: bytes, suffix: str) -> list[str]:
    """Return the names of the fragments in a list of paths that all have the suffix."""
    lines = [line for line in text.decode(errors="replace").splitlines() if line]
    if not all(line.endswith(suffix) for line in lines):  # commits of deletions have another suffix
        raise UnknownLayout("a consolidated commit is no plain write")
    return [line.removesuffix(suffix).rstrip("/").rpartition("/")[2] for line in lines]
