"""The layout of a one-dimensional zarr array whose chunks cellfeed decodes itself, from the metadata of the array."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

MISSING = 2**64 - 1
"""Offset, in the index of a shard, of a chunk that is not stored."""

DTYPES = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float32", "float64")


class Codec(IntEnum):
    """How the bytes of a chunk are packed."""

    PLAIN = 0
    BLOSC = 1


@dataclass(frozen=True)
class ChunkLayout:
    """Where the chunks of an array lie, and how they are packed.

    Attributes
    ----------
    prefix, separator
        The key of file ``i`` is ``prefix``, ``separator`` and ``i``.
    dtype
        NumPy name of the type of the elements, little-endian.
    chunk_size
        Elements per chunk.
    chunks_per_file
        Chunks per shard; 0 if a file is a chunk.
    index_at_end
        Whether the index of a shard is at the end of its file.
    index_has_checksum, has_checksum
        Whether the index of a shard, and each chunk, end with the crc32c of the bytes before it.
    codec
        How chunks are packed.
    is_complete
        Whether each chunk is stored; otherwise a chunk that is not stored holds zeros.
    """

    prefix: str
    separator: str
    dtype: str
    chunk_size: int
    chunks_per_file: int
    index_at_end: bool
    index_has_checksum: bool
    has_checksum: bool
    codec: Codec
    is_complete: bool = False

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk after unpacking."""
        return self.chunk_size * np.dtype(self.dtype).itemsize

    @property
    def is_sharded(self) -> bool:
        """Whether a file holds several chunks and an index."""
        return self.chunks_per_file > 0

    def key(self, file: int) -> str:
        """Return the key of a file in the store."""
        return f"{self.prefix}{self.separator}{file}"


def layout_of(array: Any) -> ChunkLayout | None:
    """Return the layout of a ``zarr.Array``; ``None`` if zarr must decode its chunks."""
    metadata = array.metadata
    if (
        array.ndim != 1
        or array.fill_value not in (0, None)
        or array.dtype.name not in DTYPES
        or array.dtype.byteorder == ">"
    ):
        return None
    try:
        return _layout_v2(array) if metadata.zarr_format == 2 else _layout_v3(array)
    except (AttributeError, KeyError, TypeError, ValueError):  # metadata of an extension
        return None


def _layout_v2(array: Any) -> ChunkLayout | None:
    metadata = array.metadata
    compressor = metadata.compressor
    kind = type(compressor).__name__
    codec = {"NoneType": Codec.PLAIN, "Blosc": Codec.BLOSC}.get(kind)
    if codec is None or metadata.filters or metadata.order != "C":
        return None
    return ChunkLayout(
        prefix=f"{array.path}/",
        separator="",
        dtype=array.dtype.name,
        chunk_size=int(metadata.chunks[0]),
        chunks_per_file=0,
        index_at_end=False,
        index_has_checksum=False,
        has_checksum=False,
        codec=codec,
    )


def _layout_v3(array: Any) -> ChunkLayout | None:
    metadata = array.metadata
    document = metadata.to_dict()
    if document["chunk_grid"]["name"] != "regular" or document["chunk_key_encoding"]["name"] != "default":
        return None
    (file_size,) = document["chunk_grid"]["configuration"]["chunk_shape"]
    codecs = list(document["codecs"])
    chunk_size, index_codecs, at_end = int(file_size), [], False
    if codecs[0]["name"] == "sharding_indexed":
        (shard,) = codecs
        inside = shard["configuration"]
        (chunk_size,) = inside["chunk_shape"]
        codecs, index_codecs = list(inside["codecs"]), [codec["name"] for codec in inside["index_codecs"]]
        at_end = _plain(inside["index_location"]) == "end"
        if index_codecs not in (["bytes"], ["bytes", "crc32c"]):
            return None
    codec = _codec_of([step["name"] for step in codecs])
    endian = _plain(codecs[0].get("configuration", {}).get("endian", "little"))
    if codec is None or endian != "little":
        return None
    return ChunkLayout(
        prefix=f"{array.path}/c",
        separator=_plain(document["chunk_key_encoding"].get("configuration", {}).get("separator", "/")),
        dtype=array.dtype.name,
        chunk_size=int(chunk_size),
        chunks_per_file=int(file_size) // int(chunk_size) if index_codecs else 0,
        index_at_end=at_end,
        index_has_checksum="crc32c" in index_codecs,
        has_checksum=codecs[-1]["name"] == "crc32c",
        codec=codec,
    )


def _codec_of(names: list[str]) -> Codec | None:
    """Return how chunks are packed by the codecs of these names; ``None`` if cellfeed does not unpack them."""
    if names[-1] == "crc32c":
        names = names[:-1]
    known = {("bytes",): Codec.PLAIN, ("bytes", "blosc"): Codec.BLOSC}
    return known.get(tuple(names))


def _plain(value: Any) -> str:
    return str(getattr(value, "value", value))
