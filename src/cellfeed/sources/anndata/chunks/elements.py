"""Ranges of the elements of an array in a store: chunks that cellfeed unpacks itself, or slices by zarr or h5py."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from cellfeed._joinids import IntArray, merge_runs
from cellfeed.errors import ReadError
from cellfeed.rows.scratch import Scratch
from cellfeed.sources.anndata.chunks.chunk_layout import MISSING, ChunkLayout
from cellfeed.sources.anndata.chunks.packed_chunks import CLibrary, PackedChunks, checksum_of
from cellfeed.sources.anndata.chunks.store_files import LocalStoreFiles, StoreFiles

MAX_GAP = 64 << 10
"""Largest gap between two chunks of a file that are read as one piece; in elements, between two slices of an array."""

NONE = np.empty(0, np.int64)

REASONS = {
    3: "it cannot be read from its file",
    4: "its checksum differs",
    5: "its size is wrong",
    6: "it cannot be decompressed",
}
"""Texts for the results of kernels; the numbers are those of ``chunk_kernels``."""


class Ranges(NamedTuple):
    """Elements in memory: range ``i`` begins at ``starts[i]`` of ``elements``."""

    elements: npt.NDArray[Any]
    starts: IntArray


class Elements(Protocol):
    """A one-dimensional array in a store. Thread-safe."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""

    @property
    def chunk_size(self) -> int:
        """Elements that are unpacked together."""

    def read(self, lows: IntArray, highs: IntArray, memory: ChunkMemory) -> tuple[Ranges, int]:
        """Read ascending half-open ranges; return them, and the number of bytes that were read from the store."""


class ChunkMemory:
    """Memory for the chunks of one array, reused by the reads of a thread."""

    def __init__(self) -> None:
        self.packed, self.unpacked = Scratch(), Scratch()


class SlicedElements:
    """An array that zarr or h5py slices; chunks of any codec."""

    def __init__(self, array: Any) -> None:
        self._array = array
        self.dtype: np.dtype[Any] = np.dtype(array.dtype).newbyteorder("=")
        self.chunk_size = int(array.chunks[0]) if array.chunks else 1 << 13  # any range is cheap

    def read(self, lows: IntArray, highs: IntArray, memory: ChunkMemory) -> tuple[Ranges, int]:
        """Read ascending half-open ranges."""
        merged = merge_runs(_nonempty(lows, highs), max_gap=MAX_GAP)
        parts = [np.asarray(self._array[low:high], self.dtype) for low, high in merged.tolist()]
        before = np.cumsum(np.append(0, merged[:, 1] - merged[:, 0]))  # (n_merged + 1,)
        of = np.maximum(np.searchsorted(merged[:, 0], lows, side="right") - 1, 0)  # (n_ranges,)
        starts = before[of] + lows - merged[of, 0] if len(merged) else np.zeros(len(lows), np.int64)
        elements = np.concatenate(parts) if parts else np.empty(0, self.dtype)
        return Ranges(elements, starts), elements.nbytes


class PackedElements:
    """An array whose chunks are unpacked by kernels into memory that is reused."""

    def __init__(self, layout: ChunkLayout, files: StoreFiles, library: CLibrary) -> None:
        self.layout = layout
        self._files = files
        self.library = library
        self._indices: dict[int, IntArray] = {}  # of shards, int64 (n_chunks, 2): begin and end in the file
        self.dtype: np.dtype[Any] = np.dtype(layout.dtype)
        self.chunk_size = layout.chunk_size

    def read(self, lows: IntArray, highs: IntArray, memory: ChunkMemory) -> tuple[Ranges, int]:
        """Read ascending half-open ranges: every chunk that one of them touches is unpacked once."""
        from cellfeed.sources.anndata.chunks import chunk_kernels

        size = self.layout.chunk_size
        numbers = self.chunks_of(lows, highs)
        elements = memory.unpacked.array(len(numbers) * size, self.dtype)
        with self.packed(numbers, elements[:size], memory.packed) as (chunks, n_bytes):
            address = elements.ctypes.data
            result, k = chunk_kernels.unpack_chunks(chunks, self.layout.chunk_bytes, address, self.library)
        if result != chunk_kernels.OK:
            raise self.damaged(result, int(numbers[k]))
        slots = np.searchsorted(numbers, lows // size)  # (n_ranges,)
        return Ranges(elements, slots * size + lows % size), n_bytes

    def chunks_of(self, lows: IntArray, highs: IntArray) -> IntArray:
        """Return the numbers of the chunks that ascending ranges touch."""
        size = self.layout.chunk_size
        first, last = lows // size, np.where(highs > lows, (highs - 1) // size + 1, lows // size)
        runs = merge_runs(_nonempty(first, last), max_gap=0).tolist()
        return np.concatenate([np.arange(low, high) for low, high in runs] or [NONE])

    @contextlib.contextmanager
    def packed(
        self, numbers: IntArray, unpacked: npt.NDArray[Any], memory: Scratch
    ) -> Iterator[tuple[PackedChunks, int]]:
        """Yield chunks as an argument of kernels, and their packed bytes; their files are open meanwhile."""
        layout = self.layout
        places = self._places(numbers)  # (n_chunks, 3): file, begin, end
        sizes = places[:, 2] - places[:, 1]
        if layout.is_complete and len(missing := numbers[sizes == 0]):
            raise self._damaged(int(missing[0]), "it is missing")
        with contextlib.ExitStack() as stack:
            offsets, files = places[:, 1].copy(), np.full(len(places), -1, np.int64)
            if isinstance(self._files, LocalStoreFiles) and self.library.pread:
                room = memory.array(int(sizes.max(initial=0)), np.uint8)
                for file in np.unique(places[sizes > 0, 0]).tolist():
                    files[places[:, 0] == file] = stack.enter_context(self._files.open(layout.key(file)))
            else:
                room = memory.array(int(sizes.sum()), np.uint8)
                self._load(places, room, offsets)
            chunks = PackedChunks(files, offsets, sizes, int(layout.codec), layout.has_checksum, room, unpacked)
            yield chunks, int(sizes.sum())

    def _load(self, places: IntArray, room: npt.NDArray[np.uint8], addresses: IntArray) -> None:
        """Read chunks into memory; their addresses replace their offsets."""
        low = 0
        for piece in _pieces(places):
            part = room[low : low + piece.n_bytes]
            self._files.read(self.layout.key(piece.file), piece.start, part)
            own = slice(piece.first, piece.last)
            addresses[own] = part.ctypes.data + places[own, 1] - piece.start
            low += piece.n_bytes

    def damaged(self, result: int, number: int) -> ReadError:
        """Return the error for a chunk that a kernel found damaged."""
        return self._damaged(number, REASONS[result])

    def _damaged(self, number: int, reason: str) -> ReadError:
        layout = self.layout
        file = self._files.shown(layout.key(number // (layout.chunks_per_file or 1)))
        return ReadError(f"chunk {number}, in the file {file!r}, is damaged: {reason}")

    def _places(self, chunks: IntArray) -> IntArray:
        """Return the file, begin and end of each chunk: int64, shape (n_chunks, 3)."""
        layout = self.layout
        if not layout.is_sharded:
            ends = [self._size(layout.key(chunk)) for chunk in chunks.tolist()]
            return np.stack((chunks, np.zeros_like(chunks), np.array(ends, np.int64)), axis=1)
        shards, within = np.divmod(chunks, layout.chunks_per_file)
        places = np.empty((len(chunks), 3), np.int64)
        places[:, 0] = shards
        for shard in np.unique(shards).tolist():
            own = shards == shard
            places[own, 1:] = self._index_of(shard)[within[own]]
        return places

    def _size(self, key: str) -> int:
        """Return the bytes of a file; 0 if it is missing, by which zarr means zeros. Writers of checksums store all."""
        size = self._files.size(key)
        if size == 0 and self.layout.has_checksum:
            raise ReadError(f"the file {self._files.shown(key)!r} is missing or empty")
        return size

    def _index_of(self, shard: int) -> IntArray:
        """Return where the chunks of a shard begin and end; both are 0 for a missing chunk."""
        known = self._indices.get(shard)
        if known is None:
            known = self._indices[shard] = self._read_index(shard)
        return known

    def _read_index(self, shard: int) -> IntArray:
        layout, key = self.layout, self.layout.key(shard)
        shown = self._files.shown(key)
        n_bytes = 16 * layout.chunks_per_file + 4 * layout.index_has_checksum
        file_size = self._size(key)
        if file_size == 0:  # all chunks are missing
            return np.zeros((layout.chunks_per_file, 2), np.int64)
        packed = np.empty(n_bytes, np.uint8)
        if file_size < n_bytes:
            raise ReadError(f"the file {shown!r} is damaged: it is shorter than its index")
        self._files.read(key, file_size - n_bytes if layout.index_at_end else 0, packed)
        if layout.index_has_checksum:
            found = int(packed[-4:].view(np.uint32)[0])
            if checksum_of(packed[:-4]) != found:
                raise ReadError(f"the index of the file {shown!r} is damaged: its checksum differs")
            packed = packed[:-4]
        index = packed.view(np.uint64).reshape(-1, 2)  # begin, size
        stored = index[:, 0] != MISSING
        begins = np.where(stored, index[:, 0], 0).astype(np.int64)
        ends = begins + np.where(stored, index[:, 1], 0).astype(np.int64)
        if (begins < 0).any() or (ends < begins).any() or (ends > file_size).any():
            raise ReadError(f"the index of the file {shown!r} is damaged: it names bytes outside of the file")
        return np.stack((begins, ends), axis=1)


class _Piece(NamedTuple):
    """Bytes of a file with the chunks ``first`` to ``last``."""

    file: int
    start: int
    n_bytes: int
    first: int
    last: int


def _pieces(places: IntArray) -> list[_Piece]:
    """Merge the places of chunks that follow each other in a file."""
    pieces: list[_Piece] = []
    for k, (file, begin, end) in enumerate(places.tolist()):
        last = pieces[-1] if pieces else None
        if begin == end:
            continue
        if last and last.file == file and 0 <= begin - (last.start + last.n_bytes) <= MAX_GAP and last.last == k:
            pieces[-1] = last._replace(n_bytes=end - last.start, last=k + 1)
        else:
            pieces.append(_Piece(file, begin, end - begin, k, k + 1))
    return pieces


def _nonempty(lows: IntArray, highs: IntArray) -> IntArray:
    """Return the ranges that have elements, as runs without overlaps: int64, shape (n_runs, 2)."""
    ranges = np.stack((lows, highs), axis=1)[highs > lows]
    if len(ranges) > 1:
        ranges[1:, 0] = np.maximum(ranges[1:, 0], ranges[:-1, 1])
        ranges = ranges[ranges[:, 1] > ranges[:, 0]]
    return ranges
