"""Rows of X from the files of a TileDB array, decoded without TileDB.

TileDB's reader turns the 2 bytes that a value takes on disk into 20 bytes of coordinates and values, copies them twice,
and compares every query with every tile. Here a tile is unpacked into memory that stays in the cache, and its values
are copied from there to their rows.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from cellfeed._joinids import IntArray, runs_of
from cellfeed.errors import ReadError
from cellfeed.rows.row_allocator import RowAllocator, RowArrays, RowPointers
from cellfeed.rows.row_builder import GeneTable, RowRuns
from cellfeed.sources.redact import failed_read, reraise_as
from cellfeed.sources.soma.tiles.decode_buffers import DecodeBuffers, FragmentBuffers
from cellfeed.sources.soma.tiles.files import Piece
from cellfeed.sources.soma.tiles.fragments import FIELDS, Fragment
from cellfeed.sources.soma.tiles.index import FRAGMENTS, TileIndex
from cellfeed.sources.soma.tiles.packed_tiles import DAMAGED, FULL, NOT_COUNTS, PackedField, PackedTiles, Segments
from cellfeed.sources.soma.tiles.zstd import find_zstd
from cellfeed.stats import Meter


class TileReader:
    """A :class:`~cellfeed.rows.row_allocator.Reader` of the files of one array.

    Parameters
    ----------
    index
        The tiles of the array.
    genes, value_dtype, columns, meter
        As for :class:`~cellfeed.sources.soma.tiledb_reader.SomaReader`.
    secrets
        Strings that are removed from error messages.
    n_decoding
        Number of reads that decode tiles at the same time; other reads may load their files.
    verify
        Whether the sums and extremes of tiles are compared with those that their writer recorded in the metadata.
    """

    def __init__(
        self,
        index: TileIndex,
        genes: GeneTable,
        value_dtype: npt.DTypeLike,
        *,
        columns: IntArray | None = None,
        secrets: frozenset[str] = frozenset(),
        n_decoding: int = 1,
        verify: bool = True,
        meter: Meter,
    ) -> None:
        zstd = find_zstd()
        assert zstd is not None  # open_tiles has found it
        self._zstd = zstd
        self._index = index
        self._genes = genes
        self._value_dtype = np.dtype(value_dtype)
        self._columns = columns
        self._secrets = secrets
        self._verify = verify
        self._meter = meter
        self._may_be_counts = True  # until a read finds a value that is not a count
        self._decoding = threading.Semaphore(n_decoding)
        self._lock = threading.Lock()
        self._free: list[DecodeBuffers] = []
        self._closed = False

    def read(self, joinids: IntArray, allocator: RowAllocator) -> RowPointers:
        """Read the rows of ascending ``joinids`` into memory of an allocator."""
        buffers = self._take_buffers()
        try:
            with reraise_as(ReadError, failed_read(joinids, self._index.files), self._secrets):
                rows = self._read(joinids, allocator, buffers)
        except BaseException:
            buffers.close()  # they are not reused: a request that was abandoned may still write to them
            raise
        self._give_back(buffers)
        return rows

    def _read(self, joinids: IntArray, allocator: RowAllocator, buffers: DecodeBuffers) -> RowPointers:
        started = time.perf_counter()
        runs = runs_of(joinids)
        packed: list[PackedTiles] = []
        pieces: list[Piece] = []
        for fragment in self._index.fragments:
            tiles = fragment.tiles_of(runs, self._columns, self._index.extent)
            if len(tiles):
                packed.append(self._locate(fragment, tiles, buffers, buffers.fragments[len(packed)], pieces))
        self._index.files.read(pieces)
        read_s = time.perf_counter() - started
        with self._decoding:
            started = time.perf_counter()
            sizes, segments = self._find_segments(len(joinids), RowRuns.from_runs(runs), packed, buffers)
            rows = None
            while rows is None:  # the second attempt does not assume counts
                rows = self._fill(allocator, joinids, sizes, packed, segments, buffers)
        self._meter.add(
            read_s=read_s,
            build_s=time.perf_counter() - started,
            bytes_read=sum(tiles.n_bytes for tiles in packed),
            nnz=rows.nnz,
        )
        return rows

    def _locate(
        self,
        fragment: Fragment,
        tiles: IntArray,
        buffers: DecodeBuffers,
        fragment_buffers: FragmentBuffers,
        pieces: list[Piece],
    ) -> PackedTiles:
        """Append the pieces of files that contain tiles to ``pieces``; return the tiles, whose data are to be read."""
        fields = []
        unpacked = np.empty(0, self._index.dtype), buffers.rows, buffers.columns
        for k, name in enumerate(FIELDS):
            begins, ends = fragment.offsets[k][tiles], fragment.offsets[k][tiles + 1]
            starts, stops = _merge_pieces(begins, ends, self._index.files.max_gap)
            bounds = np.append(0, np.cumsum(stops - starts))  # (n_pieces + 1,): where pieces lie in data
            data = fragment_buffers.packed[k].array(int(bounds[-1]), np.uint8)
            file = f"{FRAGMENTS}/{fragment.name}/{name}.tdb"
            for start, low, high in zip(starts.tolist(), bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
                pieces.append(Piece(file, start, data[low:high]))
            shift = (bounds[:-1] - starts)[np.searchsorted(starts, begins, side="right") - 1]  # (n_tiles,)
            places = np.stack((begins + shift, ends + shift), axis=1)  # (n_tiles, 2)
            fields.append(PackedField(data, places, int(self._index.codecs[k]), unpacked[k]))
        values, rows, columns = fields
        return PackedTiles(fragment, tiles, values, rows, columns)

    def _find_segments(
        self, n_rows: int, runs: RowRuns, packed: list[PackedTiles], buffers: DecodeBuffers
    ) -> tuple[IntArray, list[Segments]]:
        """Unpack row numbers; return the number of values of each row, and the segments of each fragment."""
        from cellfeed.sources.soma.tiles import row_kernels

        sizes = np.zeros(n_rows, np.int64)
        of_fragments: list[Segments] = []
        for number, tiles in enumerate(packed):
            segments = buffers.segments(number, tiles.counts(self._index.capacity))
            recorded = tiles.row_statistics(verify=self._verify)
            status, tile = row_kernels.find_tile_segments(tiles.rows, buffers.decoder, runs, recorded, segments, sizes)
            if status == FULL:
                buffers.values_per_segment = max(1, buffers.values_per_segment // 4)
                return self._find_segments(n_rows, runs, packed, buffers)
            if status == DAMAGED:
                raise self._damaged(tiles, tile)
            if self._verify:
                tiles.request_unverified(segments)
            of_fragments.append(segments)
        return sizes, of_fragments

    def _fill(
        self,
        allocator: RowAllocator,
        joinids: IntArray,
        sizes: IntArray,
        packed: list[PackedTiles],
        of_fragments: list[Segments],
        buffers: DecodeBuffers,
    ) -> RowPointers | None:
        """Unpack columns and values and copy them to rows; return ``None`` if values were assumed to be counts.

        If only some genes are selected, rows have fewer values than are unpacked: they are filled in buffers first.
        """
        dtype = self._smallest_type(packed)
        allocate = allocator.allocate if self._genes.keeps_all else buffers.rows_of_all_genes.allocate
        rows = allocate(sizes, self._genes.dtype, dtype)
        unfilled = rows.unfilled
        disorder = False
        for tiles, segments in zip(packed, of_fragments, strict=True):
            status, tile = self._fill_from(tiles, segments, unfilled, buffers)
            if status == NOT_COUNTS:
                self._may_be_counts = False
                return None
            if status == DAMAGED:
                raise self._damaged(tiles, tile)
            disorder |= bool(status)
            if self._verify:
                tiles.set_verified(segments)
        if not self._genes.keeps_all:
            rows = rows.copy_to(allocator, sizes=unfilled.sizes)
        return rows.sorted(joinids) if disorder else rows

    def _fill_from(
        self, tiles: PackedTiles, segments: Segments, rows: RowArrays, buffers: DecodeBuffers
    ) -> tuple[int, int]:
        """Append the values of a fragment to rows; return the status of the kernel and the tile at which it stopped."""
        from cellfeed.sources.soma.tiles import row_kernels

        dtype = rows.value_type.dtype
        are_counts = dtype.itemsize <= 2 and dtype != self._value_dtype
        from_floats = are_counts and self._index.dtype == np.float32
        unpacked = buffers.values.array(self._index.capacity, np.uint16 if from_floats else self._index.dtype)
        fields = tiles.columns, tiles.values._replace(unpacked=unpacked)
        recorded = tiles.value_statistics(self._index.n_columns, verify=self._verify)
        arguments = *fields, buffers.decoder, segments, self._genes.places
        outcome: tuple[int, int]
        if from_floats:
            rows = rows._replace(value_type=np.empty(0, np.uint16))  # one compiled form serves both types of counts
            outcome = row_kernels.fill_counts(*arguments, rows, dtype.itemsize, recorded)
        else:
            outcome = row_kernels.fill_values(*arguments, rows, are_counts, recorded)
        return outcome

    def _smallest_type(self, packed: list[PackedTiles]) -> np.dtype[Any]:
        """Return the type for the values of tiles if they are counts, according to the recorded largest values."""
        largest = max((tiles.fragment.largest[tiles.tiles].max() for tiles in packed), default=0)
        if self._may_be_counts:
            for dtype in (np.dtype(np.uint8), np.dtype(np.uint16)):
                if largest <= np.iinfo(dtype).max and dtype.itemsize <= self._value_dtype.itemsize:
                    return dtype
        return self._value_dtype

    def _damaged(self, tiles: PackedTiles, k: int) -> ReadError:
        return ReadError(
            f"tile {tiles.tiles[k]} of fragment {tiles.fragment.name!r} of {str(self._index.files)!r} is damaged: its "
            f"bytes are not those of its {tiles.counts(self._index.capacity)[k]} values"
        )

    def _take_buffers(self) -> DecodeBuffers:
        with self._lock:
            if self._closed:
                raise ReadError(f"the reader of {str(self._index.files)!r} is closed")
            return self._free.pop() if self._free else DecodeBuffers(self._zstd, self._index)

    def _give_back(self, buffers: DecodeBuffers) -> None:
        with self._lock:
            if not self._closed:
                self._free.append(buffers)
                return
        buffers.close()

    def close(self) -> None:
        """Free buffers and close files; a later read is an error."""
        with self._lock:
            self._closed = True
            unused, self._free = self._free, []
        for buffers in unused:
            buffers.close()
        self._index.files.close()


def _merge_pieces(begins: IntArray, ends: IntArray, max_gap: int) -> tuple[IntArray, IntArray]:
    """Merge pieces of a file with at most ``max_gap`` bytes between them.

    >>> _merge_pieces(np.array([0, 10, 50]), np.array([10, 20, 60]), max_gap=8)
    (array([ 0, 50]), array([20, 60]))
    """
    breaks = np.flatnonzero(begins[1:] - ends[:-1] > max_gap)
    return begins[np.append(0, breaks + 1)], ends[np.append(breaks, len(ends) - 1)]
