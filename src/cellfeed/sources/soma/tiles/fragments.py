"""How TileDB lays an array on disk: which fragments there are, and where each data tile lies. Pure.

Written from TileDB's own description of its format (``format_spec`` in its repository: ``fragment.md``,
``generic_tile.md``, ``array_file_hierarchy.md``). What is not known here is refused by :class:`UnknownLayout`, never
guessed: the array is then read through TileDB.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cellfeed._joinids import IntArray, merge_runs
from cellfeed.errors import ReadError

VERSIONS = range(16, 23)
"""Fragment formats whose footer is known: TileDB 2.13 to 2.30."""

FIELDS = ("a0", "d0", "d1")
"""Files of an array of one attribute and two dimensions: values, rows, columns."""

GZIP = 1

HEAD_BYTES, BOX_BYTES = 4096, 64
"""Bounds of a tile of metadata: bytes of its heads, and bytes for each data tile. A box of the R-tree has 32 bytes, and
all higher levels of the tree together have fewer boxes than its last one."""

LISTS = (".con", ".ign", ".vac")
"""Ends of the names of commits that list fragments: consolidated commits, ignored ones, fragments to be vacuumed."""

_NAME = re.compile(r"__(\d+)_(\d+)_[0-9a-f]+(?:_(\d+))?")


UNKNOWN_SUMS = np.array([2**63 - 1, -(2**63)], np.int64)
"""Sums of integers that mean that a sum left the range of int64."""


class UnknownLayout(Exception):  # noqa: N818 - not an error: the array is read another way
    """The array uses something that is not read here."""


class ConsolidatedLater(UnknownLayout):
    """A fragment holds values from before and after the timestamp; only TileDB reads the time of each value."""


@dataclass(frozen=True, eq=False)
class Fragment:
    """Where the data tiles of one fragment lie.

    Attributes
    ----------
    name
        Its folder.
    last_values
        Values in the last tile; all others are full.
    smallest, largest
        shape (n_tiles,), of the type of X: the smallest and the largest value in each tile. They are not exact where a
        tile holds NaN.
    rows, columns
        uint32 or int64, shape (n_tiles, 2): smallest and largest row and column of each tile, inclusive.
    first_block, last_block
        int32, shape (n_tiles,): row-block of each tile's first and last row; both ascend.
    offsets
        int64, shape (n_tiles + 1,) each, for ``FIELDS``: where the tiles begin in their files, and where the last ends.
    row_sums, column_sums, value_sums
        int64 and, for values that are floats, float64, shape (n_tiles,): the sums of each tile, as its writer noted
        them. Sums of integers are modulo 2**64; :data:`UNKNOWN_SUMS` stand for sums that its writer could not hold.
    has_timestamps
        Whether the fragment was consolidated from others and keeps the time of each value. In an array that forbids
        duplicates, such a fragment may hold several values of one place.
    verified
        bool, shape (n_tiles,), filled by readers: tiles of which this process has verified all columns and values.
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
        """Ascending indices of the tiles that may hold values of half-open ranges of rows and columns."""
        near = [self._tiles_near(start, stop, extent) for start, stop in merge_runs(rows, max_gap=extent).tolist()]
        tiles = np.unique(np.concatenate(near))
        tiles = tiles[_meets(self.rows[tiles], rows)]
        return tiles if columns is None else tiles[_meets(self.columns[tiles], columns)]

    def _tiles_near(self, start: int, stop: int, extent: int) -> IntArray:
        """Find the tiles of the row-blocks that a range of rows touches, at the same cost whatever the array's size."""
        first = int(np.searchsorted(self.last_block, start // extent))
        return np.arange(first, int(np.searchsorted(self.first_block, (stop - 1) // extent, side="right")))


def _meets(spans: IntArray, ranges: IntArray) -> npt.NDArray[np.bool_]:
    """Whether inclusive spans, shape (n, 2), meet any of some ascending half-open ranges, shape (m, 2)."""
    nearest = np.searchsorted(ranges[:, 1], spans[:, 0], side="right")  # the first that ends behind a span's begin
    met: npt.NDArray[np.bool_] = nearest < len(ranges)
    met[met] = ranges[nearest[met], 0] <= spans[met, 1]
    return met


def visible_fragments(commits: Iterable[str], texts: Mapping[str, bytes], timestamp_ms: int) -> list[str]:
    """Name the fragments that a reader at ``timestamp_ms`` sees, oldest first.

    Parameters
    ----------
    commits
        Names of the files in the array's folder of commits.
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
    replaced: dict[str, list[str]] = {}  # the fragments that a consolidated one stands for, until they are vacuumed
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
    for name, (begins, ends) in times.items():
        if begins <= timestamp_ms < ends:
            raise ConsolidatedLater(f"fragment {name!r} was consolidated over the timestamp {timestamp_ms}")
    for name in replaced.keys() & times.keys():
        if times[name][1] <= timestamp_ms:
            ignored.update(replaced[name])
    seen = sorted((times[name], name) for name in times.keys() - ignored if times[name][1] <= timestamp_ms)
    return [name for _, name in seen]


def _times(name: str) -> tuple[int, int]:
    """Return the milliseconds at which a fragment begins and ends."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise UnknownLayout(f"fragment {name!r}")
    return int(match[1]), int(match[2])


def _listed(text: bytes, suffix: str) -> list[str]:
    """Return the names of the fragments in a list of paths that all end in a suffix."""
    lines = [line for line in text.decode(errors="replace").splitlines() if line]
    if not all(line.endswith(suffix) for line in lines):  # commits of deletions end in another one
        raise UnknownLayout("a consolidated commit is no plain write")
    return [line.removesuffix(suffix).rstrip("/").rpartition("/")[2] for line in lines]


def parse_fragment(
    name: str, data: bytes, extent: int, dtype: npt.DTypeLike, max_tiles: int = 2**40
) -> Fragment | None:
    """Read a fragment's metadata file; ``None`` if the fragment is empty.

    Parameters
    ----------
    data
        All of ``__fragment_metadata.tdb``.
    extent
        Rows of a space tile.
    dtype
        Type of the values.
    max_tiles
        The largest number of tiles that the array's shape permits: nothing larger is unpacked.

    Raises
    ------
    UnknownLayout
        If the metadata has another format, or contradicts itself.
    ReadError
        If a part of the metadata is larger than its number of tiles permits.
    """
    try:
        return _parse(name, data, extent, np.dtype(dtype), max_tiles)
    except (struct.error, zlib.error, ValueError, IndexError) as cause:
        raise UnknownLayout(f"fragment {name!r} cannot be read: {cause}") from cause


def _parse(name: str, data: bytes, extent: int, dtype: np.dtype[Any], max_tiles: int) -> Fragment | None:
    (length,) = struct.unpack_from("<Q", data, len(data) - 8)
    if length > len(data) - 8:
        raise UnknownLayout(f"fragment {name!r} has no footer")
    footer = _Cursor(data[len(data) - 8 - length : -8])
    (version,) = footer.take("I")
    if version not in VERSIONS:
        raise UnknownLayout(f"fragment {name!r} has format {version}")
    footer.skip(*footer.take("Q"))  # the schema's name
    dense, empty = footer.take("BB")
    footer.skip(32)  # the non-empty domain: two dimensions of int64
    n_tiles, last_values = footer.take("QQ")
    has_timestamps, has_deletes = footer.take("BB")
    if dense or has_deletes:
        raise UnknownLayout(f"fragment {name!r} is dense or holds deletions")
    if empty or n_tiles == 0:
        return None
    if n_tiles > max_tiles:
        raise ValueError(f"{n_tiles} tiles, where the array's shape permits {max_tiles}")
    n_fields = 4 + has_timestamps  # attribute, the old coordinates, two dimensions, timestamps
    sizes = footer.take(f"{3 * n_fields}Q")
    (tree,) = footer.take("Q")
    places = footer.take(f"{n_fields}Q")
    footer.skip(3 * 8 * n_fields)  # offsets and sizes of columns of varying length, validity
    smallest, largest, sums = (footer.take(f"{n_fields}Q") for _ in range(3))

    def unpack(at: int) -> bytes:
        return _generic_tile(data, at, HEAD_BYTES + BOX_BYTES * n_tiles)

    boxes = _leaves(unpack(tree), n_tiles)
    offsets = tuple(_offsets(unpack(places[k]), n_tiles, sizes[k]) for k in (0, 2, 3))
    blocks = boxes[:, 0] // extent
    if (np.diff(blocks, axis=0) < 0).any() or blocks.max(initial=0) > np.iinfo(np.int32).max:
        raise UnknownLayout(f"fragment {name!r} is not in row-major order")
    compact = boxes.astype(np.uint32) if boxes.min() >= 0 and boxes.max() < 2**32 else boxes
    return Fragment(
        name=name,
        last_values=last_values,
        smallest=_extremes(unpack(smallest[0]), n_tiles, dtype),
        largest=_extremes(unpack(largest[0]), n_tiles, dtype),
        rows=np.ascontiguousarray(compact[:, 0]),
        columns=np.ascontiguousarray(compact[:, 1]),
        first_block=np.ascontiguousarray(blocks[:, 0], np.int32),
        last_block=np.ascontiguousarray(blocks[:, 1], np.int32),
        offsets=(offsets[0], offsets[1], offsets[2]),
        row_sums=_sums(unpack(sums[2]), n_tiles, "<i8"),
        column_sums=_sums(unpack(sums[3]), n_tiles, "<i8"),
        value_sums=_value_sums(unpack(sums[0]), n_tiles, dtype),
        has_timestamps=bool(has_timestamps),
        verified=np.zeros(n_tiles, np.bool_),
    )


class _Cursor:
    """Reads little-endian fields one after another."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, form: str) -> tuple[int, ...]:
        fields = struct.unpack_from("<" + form, self._data, self._at)
        self.skip(struct.calcsize("<" + form))
        return fields

    def skip(self, n_bytes: int) -> None:
        self._at += n_bytes

    def bytes(self, n_bytes: int) -> bytes:
        taken = self._data[self._at : self._at + n_bytes]
        if len(taken) != n_bytes:
            raise ValueError("cut short")
        self.skip(n_bytes)
        return taken


def _generic_tile(data: bytes, at: int, limit: int) -> bytes:
    """Unpack a tile of metadata of at most ``limit`` bytes, packed as its header says: always gzip so far."""
    cursor = _Cursor(data[at:])
    _, _, size, _, _, encryption, pipeline_bytes = cursor.take("IQQBQBI")
    too_large = ReadError(f"a fragment's metadata is damaged: a part of it is larger than the {limit} bytes possible")
    if size > limit:
        raise too_large
    pipeline = cursor.bytes(pipeline_bytes)
    _, n_filters, kind = struct.unpack_from("<IIB", pipeline)
    if encryption or n_filters != 1 or kind != GZIP:
        raise UnknownLayout("metadata is encrypted or packed in an unknown way")
    parts, left = [], size
    (n_chunks,) = cursor.take("Q")
    for _ in range(n_chunks):
        _, packed_bytes, head_bytes = cursor.take("III")
        head = cursor.bytes(head_bytes)
        n_heads, n_parts = struct.unpack_from("<II", head)
        if n_heads or n_parts != 1:
            raise UnknownLayout("metadata is packed in an unknown way")
        stream = zlib.decompressobj()
        parts.append(stream.decompress(cursor.bytes(packed_bytes), left + 1))  # no more, whatever the bytes unpack to
        left -= len(parts[-1])
        if left < 0:
            raise too_large
        if not stream.eof:
            raise ValueError("a chunk of metadata is cut short")
    if left:
        raise ValueError(f"{size - left} bytes of metadata where {size} belong")
    return b"".join(parts)


def _leaves(tree: bytes, n_tiles: int) -> IntArray:
    """int64, shape (n_tiles, 2, 2): the boxes of the last level of an R-tree."""
    _, n_levels = struct.unpack_from("<II", tree)
    at, n_boxes = 8, 0
    for level in range(n_levels):
        (n_boxes,) = struct.unpack_from("<Q", tree, at)
        at += 8
        if level < n_levels - 1:
            at += n_boxes * 32
    if n_boxes != n_tiles:
        raise ValueError(f"{n_boxes} boxes for {n_tiles} tiles")
    return np.frombuffer(tree, "<i8", n_tiles * 4, at).reshape(n_tiles, 2, 2)


def _extremes(packed: bytes, n_tiles: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    n_bytes, _ = struct.unpack_from("<QQ", packed)
    if n_bytes != n_tiles * dtype.itemsize:
        raise ValueError(f"{n_bytes} bytes of largest values for {n_tiles} tiles")
    return np.frombuffer(packed, dtype, n_tiles, 16)


def _sums(packed: bytes, n_tiles: int, dtype: str) -> npt.NDArray[Any]:
    (n_bytes,) = struct.unpack_from("<Q", packed)
    if n_bytes not in (n_tiles, n_tiles * 8):
        raise ValueError(f"{n_bytes} bytes of sums for {n_tiles} tiles")
    return np.frombuffer(packed, dtype, n_tiles, 8)


def _value_sums(packed: bytes, n_tiles: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return the sums of values, in int64 for integers; a sum that its type could not hold is an unknown one."""
    if dtype.kind == "f":
        return _sums(packed, n_tiles, "<f8")
    sums = _sums(packed, n_tiles, "<i8")
    # TileDB adds up unsigned integers as uint64 and notes its largest value, which is -1 here, for a larger sum.
    return np.where(sums == -1, UNKNOWN_SUMS[0], sums) if dtype.kind == "u" else sums


def _offsets(packed: bytes, n_tiles: int, file_size: int) -> IntArray:
    (n,) = struct.unpack_from("<Q", packed)
    starts = np.frombuffer(packed, "<i8", n, 8)
    offsets = np.append(starts, file_size)
    if n != n_tiles or (np.diff(offsets) <= 0).any():
        raise ValueError(f"{n} offsets for {n_tiles} tiles, or not ascending")
    return offsets
