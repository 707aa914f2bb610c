"""Appends the chunks of an array of one axis to shards of zarr v3 (codec ``sharding_indexed``, index at the end).

A shard is a file of encoded chunks, then an index: offset and number of bytes of each chunk, uint64, both 2**64 - 1 for
a chunk that is missing; then the CRC32C of the index. The file has the suffix ``.partial`` until it is complete.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import numpy.typing as npt

from cellfeed.sources.anndata.chunks.chunk_layout import MISSING
from cellfeed.sources.anndata.copies.layout import (
    CHECKSUM_SIZE,
    Array,
    Layout,
    ShuffleName,
    with_checksum,
    without_checksum,
)

PARTIAL = ".partial"

ShardIndex = npt.NDArray[np.uint64]


class ShardWriter:
    """Writes an array to a folder; :meth:`finish` makes it an array of zarr.

    Parameters
    ----------
    folder
        Folder of the array.
    dtype, shuffle
        Type of the values, and how Blosc shuffles them.
    layout
        Layout of the array.
    """

    def __init__(self, folder: Path, dtype: npt.DTypeLike, shuffle: ShuffleName, layout: Layout) -> None:
        self.folder = folder
        self.n_chunks = 0
        self._shuffle = shuffle
        self._layout = layout
        self._codec = layout.codec(dtype, shuffle)
        self._encoded = np.empty(self._codec.room(layout.chunk_size), np.uint8)
        self._index = self._empty_index()
        self._file: FileIO | None = None
        (folder / "c").mkdir(parents=True, exist_ok=True)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return self._codec.dtype

    @property
    def n_bytes(self) -> int:
        """Number of bytes in all files."""
        return sum(path.stat().st_size for path in (self.folder / "c").iterdir())

    def append(self, values: Array) -> None:
        """Encode and write one chunk; the last of a shard completes its file."""
        self._put(self._codec.encode(values, self._encoded))

    def _put(self, encoded: memoryview | bytes) -> None:
        shard, place = divmod(self.n_chunks, self._layout.shard_chunks)
        if self._file is None:
            self._file = FileIO(self._path(shard, PARTIAL), "wb")
        self._index[place] = self._file.tell(), len(encoded)
        write_all(self._file, encoded)
        self.n_chunks += 1
        if place == self._layout.shard_chunks - 1:
            self._complete(shard)

    def _complete(self, shard: int) -> None:
        if self._file is None:
            return
        write_all(self._file, with_checksum(self._index.tobytes()))
        self.close()
        self._path(shard, PARTIAL).replace(self._path(shard))
        self._index = self._empty_index()

    def finish(self, size: int) -> None:
        """Complete the last shard, and write the metadata of an array of ``size`` values."""
        import zarr

        self._complete(self.n_chunks // self._layout.shard_chunks)
        zarr.create_array(
            self.folder,
            shape=(size,),
            dtype=self.dtype,
            chunks=(self._layout.chunk_size,),
            shards=(self._layout.shard_size,),
            compressors=self._codec.zarr_codecs,
            fill_value=0,
            zarr_format=3,
        )

    def close(self) -> None:
        """Close the file, complete or not."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def reopen(self, size: int) -> Array:
        """Continue, in a new writer, after the first ``size`` values of the folder; return those of the last chunk.

        The shard in which these values end stays as it is until its successor is complete; later ones are removed.
        """
        n_chunks, n_rest = divmod(size, self._layout.chunk_size)
        shard, place = divmod(n_chunks, self._layout.shard_chunks)
        self.n_chunks = shard * self._layout.shard_chunks
        kept = {self._path(k) for k in range(shard + bool(place or n_rest))}
        for path in set((self.folder / "c").iterdir()) - kept:
            path.unlink()
        chunks = self._complete_chunks(shard) if self._path(shard) in kept else iter(())
        for encoded in itertools.islice(chunks, place):
            self._put(encoded)
        return self._codec.decode(next(chunks))[:n_rest] if n_rest else np.empty(0, self.dtype)

    def recode(self, folder: Path, dtype: npt.DTypeLike) -> ShardWriter:
        """Return a writer of another folder with all chunks in another type. The folder appears when it has all."""
        partial = folder.with_name(folder.name + PARTIAL)
        other = ShardWriter(partial, dtype, self._shuffle, self._layout)
        for encoded in self._chunks():
            other.append(self._codec.decode(encoded).astype(dtype))
        partial.rename(folder)
        other.folder = folder
        self.close()
        rmtree(self.folder)
        return other

    def _chunks(self) -> Iterator[bytes]:
        """Yield all chunks, encoded."""
        n_complete = self.n_chunks // self._layout.shard_chunks
        for shard in range(n_complete):
            yield from self._complete_chunks(shard)
        if self._file is not None:
            yield from read_chunks(self._path(n_complete, PARTIAL), self._index)

    def _complete_chunks(self, shard: int) -> Iterator[bytes]:
        path = self._path(shard)
        with path.open("rb") as file:
            file.seek(-self._index.nbytes - CHECKSUM_SIZE, 2)
            index = np.frombuffer(without_checksum(file.read()), "<u8").reshape(-1, 2)
        return read_chunks(path, index)

    def _empty_index(self) -> ShardIndex:
        return np.full((self._layout.shard_chunks, 2), MISSING, "<u8")

    def _path(self, shard: int, suffix: str = "") -> Path:
        return self.folder / "c" / f"{shard}{suffix}"


def read_chunks(path: Path, index: ShardIndex) -> Iterator[bytes]:
    """Yield the chunks of a shard that are not missing."""
    with path.open("rb") as file:
        for offset, n_bytes in index.tolist():
            if offset != MISSING:
                file.seek(offset)
                yield file.read(n_bytes)


def write_all(file: FileIO, data: memoryview | bytes) -> None:
    """Write all bytes: on a full disk the system first writes a part, and then raises the error."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]
