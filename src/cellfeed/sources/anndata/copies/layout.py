"""How the arrays of a CSR matrix lie in a copy: chunks, shards, and the codecs of zarr that encode a chunk."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cellfeed.sources.anndata.chunks.blosc import find_blosc

Array = npt.NDArray[Any]
CompressionName = Literal["lz4", "zstd"]
ShuffleName = Literal["shuffle", "bitshuffle"]

LEVELS: dict[CompressionName, tuple[int, int]] = {"lz4": (5, 0), "zstd": (1, 1 << 18)}
"""Level and block size in bytes (0: Blosc chooses) of each compression.

Higher levels of LZ4 save 0.3 % of the space; levels 2 and 3 of zstd save 2 and 5 %, and encode at two thirds and a
third of the speed. Blocks of zstd of less than 256 KiB decode at two thirds of the speed.
"""

SHUFFLES = {"shuffle": 1, "bitshuffle": 2}
"""Numbers of Blosc. Values, most of which are small, take a fifth less space by bits than by bytes with LZ4, and encode
twice as fast; column numbers decode faster by bytes."""

BLOSC_OVERHEAD, CHECKSUM_SIZE = 16, 4


@dataclass(frozen=True)
class Layout:
    """Layout of an array of one axis.

    Attributes
    ----------
    compression
        ``"lz4"`` or ``"zstd"``.
    chunk_size
        Values per chunk, the unit of decoding.
    shard_chunks
        Chunks per shard, which is one file.
    """

    compression: CompressionName = "lz4"
    chunk_size: int = 1 << 18
    shard_chunks: int = 256

    @property
    def shard_size(self) -> int:
        """Values per shard."""
        return self.chunk_size * self.shard_chunks

    def codec(self, dtype: npt.DTypeLike, shuffle: ShuffleName) -> ChunkCodec:
        """Return the codec of an array."""
        level, block_size = LEVELS[self.compression]
        return ChunkCodec(np.dtype(dtype), self.compression, level, shuffle, block_size)


@dataclass(frozen=True)
class ChunkCodec:
    """Encodes the chunks of one array by Blosc, with a CRC32C at the end, as zarr's codecs of these names do."""

    dtype: np.dtype[Any]
    compression: CompressionName
    level: int
    shuffle: ShuffleName
    block_size: int

    @property
    def zarr_codecs(self) -> tuple[Any, Any]:
        """The codecs of bytes, as zarr describes them in the metadata of an array."""
        from zarr.codecs import BloscCodec, Crc32cCodec

        blosc = BloscCodec(
            typesize=self.dtype.itemsize,
            cname=self.compression,
            clevel=self.level,
            shuffle=self.shuffle,
            blocksize=self.block_size,
        )
        return blosc, Crc32cCodec()

    def room(self, n_values: int) -> int:
        """Return the most bytes that ``n_values`` can take when encoded."""
        return n_values * self.dtype.itemsize + BLOSC_OVERHEAD + CHECKSUM_SIZE

    def encode(self, values: Array, out: npt.NDArray[np.uint8]) -> memoryview:
        """Encode values, contiguous, into ``out``, which has the :meth:`room`; return the bytes that are used."""
        blosc = find_blosc()
        if blosc is None:
            return memoryview(self._encode_slowly(values))
        options = self.level, SHUFFLES[self.shuffle], self.dtype.itemsize, values.nbytes
        target = out.ctypes.data, len(out) - CHECKSUM_SIZE
        size = blosc.compress(*options, values.ctypes.data, *target, self.compression.encode(), self.block_size, 1)
        if size <= 0:
            raise RuntimeError(f"Blosc cannot compress {values.nbytes} bytes: status {size}")
        struct.pack_into("<I", out.data, size, blosc.checksum(out.ctypes.data, size))
        return out.data[: size + CHECKSUM_SIZE]

    def _encode_slowly(self, values: Array) -> bytes:
        """Encode by numcodecs, whose library was not found: the same bytes, in more time."""
        from numcodecs import Blosc

        blosc = Blosc(self.compression, self.level, SHUFFLES[self.shuffle], self.block_size)
        return with_checksum(blosc.encode(values))

    def decode(self, encoded: bytes) -> Array:
        """Return the values of a chunk."""
        from numcodecs import Blosc

        return np.frombuffer(Blosc().decode(without_checksum(encoded)), self.dtype)


def with_checksum(data: bytes) -> bytes:
    """Append the CRC32C of the data."""
    return data + _checksum(data)


def without_checksum(data: bytes) -> bytes:
    """Verify the CRC32C at the end of the data, and remove it; raise ``RuntimeError`` if it differs."""
    content, recorded = data[:-CHECKSUM_SIZE], data[-CHECKSUM_SIZE:]
    if recorded != _checksum(content):
        raise RuntimeError("the checksum differs")
    return content


def _checksum(data: bytes) -> bytes:
    import google_crc32c

    return int(google_crc32c.value(data)).to_bytes(CHECKSUM_SIZE, "little")
