"""Memory for decoding tiles, reused by the reads of a thread."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cellfeed._joinids import IntArray
from cellfeed.rows.row_allocator import RowPointers
from cellfeed.sources.soma.tiles.index import TileIndex
from cellfeed.sources.soma.tiles.packed_tiles import CHUNK_BYTES, SECTION_SIZE, Decoder, Segments
from cellfeed.sources.soma.tiles.zstd import Zstd

VALUES_PER_SEGMENT = 32
"""Estimated size of a segment; in a Census it is about 90. It is lowered if segments are shorter."""

MIN_SEGMENTS = 4096


class Scratch:
    """Memory that grows to the largest array that was requested."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def array(self, size: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return an array with undefined values, valid until the next call."""
        n_bytes = size * np.dtype(dtype).itemsize
        if self._memory.nbytes < n_bytes:
            self._memory = np.empty(n_bytes + n_bytes // 4, np.uint8)
        return self._memory[:n_bytes].view(dtype)


@dataclass(frozen=True, eq=False)
class FragmentBuffers:
    """Memory for the tiles of one fragment: packed bytes per field, and row, start and size of segments."""

    packed: tuple[Scratch, Scratch, Scratch] = field(default_factory=lambda: (Scratch(), Scratch(), Scratch()))
    segments: tuple[Scratch, Scratch, Scratch] = field(default_factory=lambda: (Scratch(), Scratch(), Scratch()))


class DecodeBuffers:
    """Memory and zstd context of one read at a time.

    Attributes
    ----------
    decoder
        zstd with its context.
    rows, columns
        int64 and unsigned, shape (capacity,): coordinates of an unpacked tile.
    values
        Values of an unpacked tile.
    fragments
        Memory per fragment, in the order in which a read visits fragments.
    values_per_segment
        Estimated size of a segment.
    """

    def __init__(self, zstd: Zstd, index: TileIndex) -> None:
        self._free_context = zstd.free_context
        self._n_sections = -(-index.capacity // SECTION_SIZE)
        self.decoder = Decoder(zstd.decompress, zstd.new_context(), np.empty(CHUNK_BYTES, np.uint8))
        self.rows = np.empty(index.capacity, np.int64)
        self.columns = np.empty(index.capacity, index.column_dtype)
        self.values = Scratch()
        self.fragments: defaultdict[int, FragmentBuffers] = defaultdict(FragmentBuffers)
        self.values_per_segment = VALUES_PER_SEGMENT
        self._row_genes, self._row_values = Scratch(), Scratch()

    def segments(self, number: int, counts: IntArray) -> Segments:
        """Return memory for the segments of the tiles of a fragment; no section is wanted yet."""
        capacity = int(counts.sum()) // self.values_per_segment + MIN_SEGMENTS
        row, start, size = (scratch.array(capacity, np.int32) for scratch in self.fragments[number].segments)
        wanted = np.zeros((len(counts), self._n_sections), np.bool_)
        return Segments(row, start, size, np.empty(len(counts), np.int64), counts, wanted)

    def allocate(self, sizes: IntArray, gene_dtype: npt.DTypeLike, value_dtype: npt.DTypeLike) -> RowPointers:
        """Reserve memory for rows, as ``RowAllocator.allocate`` does, valid until the next call."""
        nnz = int(sizes.sum())
        genes, values = self._row_genes.array(nnz, gene_dtype), self._row_values.array(nnz, value_dtype)
        before = np.cumsum(sizes) - sizes  # (n_rows,): values of the rows before
        return RowPointers(
            genes.ctypes.data + before * genes.itemsize,
            values.ctypes.data + before * values.itemsize,
            sizes,
            genes.dtype,
            values.dtype,
        )

    def close(self) -> None:
        """Free the zstd context."""
        self._free_context(self.decoder.context)
