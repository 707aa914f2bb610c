"""Memory for decoding tiles, reused by the reads of a thread."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from cellfeed._joinids import IntArray
from cellfeed.rows.scratch import RowScratch, Scratch
from cellfeed.sources.soma.tiles.index import TileIndex
from cellfeed.sources.soma.tiles.packed_tiles import CHUNK_BYTES, SECTION_SIZE, Decoder, Segments
from cellfeed.sources.soma.tiles.zstd import Zstd

VALUES_PER_SEGMENT = 32
"""Estimated size of a segment; in a Census it is about 90. It is lowered if segments are shorter."""

MIN_SEGMENTS = 4096


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
    rows_of_all_genes
        Memory for rows of which some genes are kept.
    """

    def __init__(self, zstd: Zstd, index: TileIndex) -> None:
        from cellfeed.sources.soma.tiles.unpack_kernels import unpack_address

        self._free_context = zstd.free_context
        self._n_sections = -(-index.capacity // SECTION_SIZE)
        self.decoder = Decoder(unpack_address(), zstd.decompress, zstd.new_context(), np.empty(CHUNK_BYTES, np.uint8))
        self.rows = np.empty(index.capacity, np.int64)
        self.columns = np.empty(index.capacity, index.column_dtype)
        self.values = Scratch()
        self.fragments: defaultdict[int, FragmentBuffers] = defaultdict(FragmentBuffers)
        self.values_per_segment = VALUES_PER_SEGMENT
        self.rows_of_all_genes = RowScratch()

    def segments(self, number: int, counts: IntArray) -> Segments:
        """Return memory for the segments of the tiles of a fragment; no section is wanted yet."""
        capacity = int(counts.sum()) // self.values_per_segment + MIN_SEGMENTS
        row, start, size = (scratch.array(capacity, np.int32) for scratch in self.fragments[number].segments)
        wanted = np.zeros((len(counts), self._n_sections), np.bool_)
        return Segments(row, start, size, np.empty(len(counts), np.int64), counts, wanted)

    def close(self) -> None:
        """Free the zstd context."""
        self._free_context(self.decoder.context)
