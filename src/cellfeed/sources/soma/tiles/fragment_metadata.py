"""Parser of a fragment's metadata file: where each data tile lies, and what its writer recorded about it.

The format is specified in https://github.com/TileDB-Inc/TileDB/blob/main/format_spec/fragment.md (*Fragment metadata
file*) and ``generic_tile.md``. All numbers are little-endian. A file that uses anything else is refused by
:class:`~cellfeed.sources.soma.tiles.fragments.UnknownLayout`.
"""

from __future__ import annotations

import struct
import zlib
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cellfeed._joinids import IntArray
from cellfeed.errors import ReadError
from cellfeed.sources.soma.tiles.fragments import UNKNOWN_SUMS, Fragment, UnknownLayout

VERSIONS = range(16, 23)
"""Versions of the format with the footer described here: TileDB 2.13 to 2.30."""

GZIP = 1
"""Number of TileDB's gzip filter."""

RANGE_BYTES = 16
"""Smallest and largest coordinate of a dimension, int64."""

BOX_BYTES = 2 * RANGE_BYTES
"""A bounding box: a range of rows and a range of columns."""

METADATA_BASE_BYTES, METADATA_TILE_BYTES = 4096, 64
"""Limit of the size of a part of the metadata: for its headers, and per data tile. The last level of the R-tree has one
box of 32 bytes per data tile; all levels above it together have fewer boxes."""


class Field(IntEnum):
    """Index of a field in the lists of the footer; a consolidated fragment has timestamps as its last field."""

    VALUES = 0
    OLD_COORDINATES = 1
    ROWS = 2
    COLUMNS = 3


class FooterHead(NamedTuple):
    """The first part of a footer."""

    is_dense: bool
    is_empty: bool
    n_tiles: int
    last_tile_size: int
    """Number of values in the last tile."""
    has_timestamps: bool
    has_deletes: bool


class FooterOffsets(NamedTuple):
    """The second part of a footer: sizes of files, and offsets in the metadata file; one number per field."""

    file_sizes: tuple[int, ...]
    rtree: int
    tile_offsets: tuple[int, ...]
    tile_mins: tuple[int, ...]
    tile_maxs: tuple[int, ...]
    tile_sums: tuple[int, ...]


def parse_fragment(
    name: str, data: bytes, extent: int, dtype: npt.DTypeLike, max_tiles: int = 2**40
) -> Fragment | None:
    """Parse a fragment's metadata file; return ``None`` if the fragment is empty.

    Parameters
    ----------
    name
        Name of the fragment.
    data
        Contents of ``__fragment_metadata.tdb``.
    extent
        Number of rows of a space tile.
    dtype
        Type of the values.
    max_tiles
        Largest number of tiles that the shape of the array permits; it limits the memory for unpacked metadata.

    Raises
    ------
    UnknownLayout
        If the metadata has another format or is inconsistent.
    ReadError
        If a part of the metadata is larger than its number of tiles permits.
    """
    try:
        return _parse(name, data, extent, np.dtype(dtype), max_tiles)
    except (struct.error, zlib.error, ValueError, IndexError) as cause:
        raise UnknownLayout(f"fragment {name!r} cannot be read: {cause}") from cause


def _parse(name: str, data: bytes, extent: int, dtype: np.dtype[Any], max_tiles: int) -> Fragment | None:
    footer = _open_footer(name, data)
    head = _parse_head(footer)
    if head.is_dense or head.has_deletes:
        raise UnknownLayout(f"fragment {name!r} is dense or holds deletions")
    n_tiles = head.n_tiles
    if head.is_empty or n_tiles == 0:
        return None
    if n_tiles > max_tiles:
        raise ValueError(f"{n_tiles} tiles, where the array's shape permits {max_tiles}")
    offsets = _parse_offsets(footer, n_fields=len(Field) + head.has_timestamps)

    def unpack(offset: int) -> bytes:
        return _unpack_generic_tile(data, offset, METADATA_BASE_BYTES + METADATA_TILE_BYTES * n_tiles)

    boxes = _parse_rtree(unpack(offsets.rtree), n_tiles)  # (n_tiles, 2 dimensions, smallest and largest coordinate)
    row_blocks = boxes[:, 0] // extent
    if (np.diff(row_blocks, axis=0) < 0).any() or row_blocks.max(initial=0) > np.iinfo(np.int32).max:
        raise UnknownLayout(f"fragment {name!r} is not in row-major order")
    compact = boxes.astype(np.uint32) if boxes.min() >= 0 and boxes.max() < 2**32 else boxes
    values, rows, columns = (
        _parse_offsets_of_tiles(unpack(offsets.tile_offsets[field]), n_tiles, offsets.file_sizes[field])
        for field in (Field.VALUES, Field.ROWS, Field.COLUMNS)
    )
    return Fragment(
        name=name,
        last_values=head.last_tile_size,
        smallest=_parse_extremes(unpack(offsets.tile_mins[Field.VALUES]), n_tiles, dtype),
        largest=_parse_extremes(unpack(offsets.tile_maxs[Field.VALUES]), n_tiles, dtype),
        rows=np.ascontiguousarray(compact[:, 0]),
        columns=np.ascontiguousarray(compact[:, 1]),
        first_block=np.ascontiguousarray(row_blocks[:, 0], np.int32),
        last_block=np.ascontiguousarray(row_blocks[:, 1], np.int32),
        offsets=(values, rows, columns),
        row_sums=_parse_sums(unpack(offsets.tile_sums[Field.ROWS]), n_tiles, "<i8"),
        column_sums=_parse_sums(unpack(offsets.tile_sums[Field.COLUMNS]), n_tiles, "<i8"),
        value_sums=_parse_value_sums(unpack(offsets.tile_sums[Field.VALUES]), n_tiles, dtype),
        has_timestamps=head.has_timestamps,
        verified=np.zeros(n_tiles, np.bool_),
    )


class _Cursor:
    """Reads fields one after another."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._offset = 0

    def take(self, form: str) -> tuple[int, ...]:
        """Return the next fields, of the types that ``struct`` denotes by ``form``."""
        fields = struct.unpack_from("<" + form, self._data, self._offset)
        self.skip(struct.calcsize("<" + form))
        return fields

    def skip(self, n_bytes: int) -> None:
        self._offset += n_bytes

    def bytes(self, n_bytes: int) -> bytes:
        taken = self._data[self._offset : self._offset + n_bytes]
        if len(taken) != n_bytes:
            raise ValueError("cut short")
        self.skip(n_bytes)
        return taken


def _open_footer(name: str, data: bytes) -> _Cursor:
    """Return the footer, which ends with its length."""
    (length,) = struct.unpack_from("<Q", data, len(data) - 8)
    if length > len(data) - 8:
        raise UnknownLayout(f"fragment {name!r} has no footer")
    footer = _Cursor(data[len(data) - 8 - length : -8])
    (version,) = footer.take("I")
    if version not in VERSIONS:
        raise UnknownLayout(f"fragment {name!r} has format {version}")
    return footer


def _parse_head(footer: _Cursor) -> FooterHead:
    (schema_name_bytes,) = footer.take("Q")
    footer.skip(schema_name_bytes)
    is_dense, is_empty = footer.take("BB")
    footer.skip(BOX_BYTES)  # the non-empty domain
    n_tiles, last_tile_size = footer.take("QQ")
    has_timestamps, has_deletes = footer.take("BB")
    return FooterHead(bool(is_dense), bool(is_empty), n_tiles, last_tile_size, bool(has_timestamps), bool(has_deletes))


def _parse_offsets(footer: _Cursor, n_fields: int) -> FooterOffsets:
    def per_field() -> tuple[int, ...]:
        return footer.take(f"{n_fields}Q")

    file_sizes, _var_sizes, _validity_sizes = per_field(), per_field(), per_field()
    (rtree,) = footer.take("Q")
    tile_offsets, _var_offsets, _var_tile_sizes, _validity_offsets = (per_field() for _ in range(4))
    return FooterOffsets(file_sizes, rtree, tile_offsets, per_field(), per_field(), per_field())


def _unpack_generic_tile(data: bytes, offset: int, limit: int) -> bytes:
    """Unpack a part of the metadata, of at most ``limit`` bytes; TileDB packs all of them by gzip."""
    cursor = _Cursor(data[offset:])
    _version, _packed_size, size, _datatype, _cell_size, encryption, pipeline_bytes = cursor.take("IQQBQBI")
    too_large = ReadError(f"a fragment's metadata is damaged: a part of it is larger than the {limit} bytes possible")
    if size > limit:
        raise too_large
    _max_chunk_size, n_filters, kind = struct.unpack_from("<IIB", cursor.bytes(pipeline_bytes))
    if encryption or n_filters != 1 or kind != GZIP:
        raise UnknownLayout("metadata is encrypted or packed in an unknown way")
    parts, n_missing = [], size
    (n_chunks,) = cursor.take("Q")
    for _ in range(n_chunks):
        _original_bytes, packed_bytes, header_bytes = cursor.take("III")
        n_metadata_parts, n_data_parts = struct.unpack_from("<II", cursor.bytes(header_bytes))
        if n_metadata_parts or n_data_parts != 1:
            raise UnknownLayout("metadata is packed in an unknown way")
        stream = zlib.decompressobj()
        parts.append(stream.decompress(cursor.bytes(packed_bytes), n_missing + 1))  # limits the memory
        n_missing -= len(parts[-1])
        if n_missing < 0:
            raise too_large
        if not stream.eof:
            raise ValueError("a chunk of metadata is cut short")
    if n_missing:
        raise ValueError(f"{size - n_missing} bytes of metadata where {size} belong")
    return b"".join(parts)


def _parse_rtree(tree: bytes, n_tiles: int) -> IntArray:
    """Return the boxes of the last level of an R-tree: int64, shape (n_tiles, 2, 2)."""
    cursor = struct.calcsize("<II")
    _fanout, n_levels = struct.unpack_from("<II", tree)
    n_boxes = 0
    for level in range(n_levels):
        (n_boxes,) = struct.unpack_from("<Q", tree, cursor)
        cursor += 8
        if level < n_levels - 1:
            cursor += n_boxes * BOX_BYTES
    if n_boxes != n_tiles:
        raise ValueError(f"{n_boxes} boxes for {n_tiles} tiles")
    return np.frombuffer(tree, "<i8", n_tiles * 4, cursor).reshape(n_tiles, 2, 2)


def _parse_offsets_of_tiles(packed: bytes, n_tiles: int, file_size: int) -> IntArray:
    """Return where tiles begin in their file, and where the last one ends: int64, shape (n_tiles + 1,)."""
    (n,) = struct.unpack_from("<Q", packed)
    offsets = np.append(np.frombuffer(packed, "<i8", n, 8), file_size)
    if n != n_tiles or (np.diff(offsets) <= 0).any():
        raise ValueError(f"{n} offsets for {n_tiles} tiles, or not ascending")
    return offsets


def _parse_extremes(packed: bytes, n_tiles: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return the smallest or the largest value of each tile: shape (n_tiles,)."""
    n_bytes, _n_var_bytes = struct.unpack_from("<QQ", packed)
    if n_bytes != n_tiles * dtype.itemsize:
        raise ValueError(f"{n_bytes} bytes of smallest or largest values for {n_tiles} tiles")
    return np.frombuffer(packed, dtype, n_tiles, 16)


def _parse_sums(packed: bytes, n_tiles: int, dtype: str) -> npt.NDArray[Any]:
    """Return the sum of each tile: shape (n_tiles,)."""
    (n_bytes,) = struct.unpack_from("<Q", packed)
    if n_bytes not in (n_tiles, n_tiles * 8):
        raise ValueError(f"{n_bytes} bytes of sums for {n_tiles} tiles")
    return np.frombuffer(packed, dtype, n_tiles, 8)


def _parse_value_sums(packed: bytes, n_tiles: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return the sums of values: float64 for floats, int64 for integers."""
    if dtype.kind == "f":
        return _parse_sums(packed, n_tiles, "<f8")
    sums = _parse_sums(packed, n_tiles, "<i8")
    # TileDB sums unsigned integers in uint64 and records a sum that overflows as the largest uint64, which is -1 here.
    return np.where(sums == -1, UNKNOWN_SUMS[0], sums) if dtype.kind == "u" else sums
