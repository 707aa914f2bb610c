"""Rows of X straight from the files of a TileDB array, where its layout is one that is known here.

TileDB's own reader makes 20 bytes of coordinates and values out of the 2 that are stored, copies them twice, and
compares every query with every tile. Here a tile is unpacked into scratch memory that stays in the cache, and its
values go from there to their rows.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cellfeed._joinids import IntArray, runs_of
from cellfeed.errors import ReadError
from cellfeed.rows.row_allocator import RowAllocator, RowPointers
from cellfeed.rows.row_builder import GeneTable
from cellfeed.sources.redact import failed_read, reraise_as
from cellfeed.sources.soma.tiles.files import Piece
from cellfeed.sources.soma.tiles.fragments import FIELDS, Fragment
from cellfeed.sources.soma.tiles.index import FRAGMENTS, TileIndex
from cellfeed.sources.soma.tiles.zstd import Zstd, find_zstd
from cellfeed.stats import Meter

VALUES_PER_CUT = 32
"""Values of one row that lie together, by guess; a Census has about 90. Lowered where there are fewer."""

MIN_CUTS = 4096


class _DecodeBuffers:
    """The memory that one thread needs to unpack tiles, kept for its next read."""

    def __init__(self, zstd: Zstd, index: TileIndex) -> None:
        from cellfeed.sources.soma.tiles.unpack_kernels import CHUNK_BYTES

        self._free_context = zstd.free_context
        self.zstd = (zstd.decompress, zstd.new_context())
        self.chunk = np.empty(CHUNK_BYTES, np.uint8)
        self.rows = np.empty(index.capacity, np.int64)
        self.columns = np.empty(index.capacity, index.column_dtype)
        self.values_per_cut = VALUES_PER_CUT
        self._rooms: dict[str, npt.NDArray[Any]] = {}

    def room(self, name: str, size: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Memory of some name, as large as was ever asked for."""
        room = self._rooms.get(name)
        if room is None or len(room) < size or room.dtype != dtype:
            room = self._rooms[name] = np.empty(size + size // 4, dtype)
        return room[:size]

    def place(self, sizes: IntArray, gene_dtype: npt.DTypeLike, value_dtype: npt.DTypeLike) -> RowPointers:
        """Make room for rows until the next read, as a ``RowAllocator`` does for longer."""
        genes = self.room("genes of rows", int(sizes.sum()), gene_dtype)
        values = self.room("values of rows", int(sizes.sum()), value_dtype)
        before = np.cumsum(sizes) - sizes
        return RowPointers(
            genes.ctypes.data + before * genes.itemsize,
            values.ctypes.data + before * values.itemsize,
            sizes,
            genes.dtype,
            values.dtype,
        )

    def close(self) -> None:
        self._free_context(self.zstd[1])


@dataclass(frozen=True, eq=False)
class _Packed:
    """Packed tiles of one fragment: tile ``i`` of field ``k`` is ``data[k][places[i, k, 0]:places[i, k, 1]]``."""

    fragment: Fragment
    tiles: IntArray
    data: tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.uint8]]
    places: IntArray

    @property
    def n_bytes(self) -> int:
        return int((self.places[:, :, 1] - self.places[:, :, 0]).sum())

    def row_sums(self, verify: bool) -> IntArray:
        """Return the noted sum of the rows of each tile; nothing if that is not to be verified."""
        return self.fragment.row_sums[self.tiles if verify else self.tiles[:0]]

    def noted(self, n_columns: int, verify: bool) -> tuple[npt.NDArray[Any], ...]:
        """Return what the metadata says of columns and values, for :func:`.row_kernels.fill_counts`."""
        fragment, tiles = self.fragment, self.tiles
        bounds = np.minimum(fragment.columns[tiles].astype(np.int64), n_columns - 1)
        to_verify = tiles if verify else tiles[:0]
        sums = fragment.value_sums[to_verify]
        neither: tuple[Any, Any] = np.empty(0, np.int64), np.empty(0, np.float64)
        of_values = (neither[0], sums) if sums.dtype == np.float64 else (sums, neither[1])
        return bounds, fragment.column_sums[to_verify], *of_values, fragment.smallest[tiles], fragment.largest[tiles]

    def want_unverified(self, wanted: npt.NDArray[np.bool_]) -> None:
        """Mark all pieces of the tiles that no read of this process has verified: bool, shape (n_tiles, n_pieces)."""
        wanted[~self.fragment.verified[self.tiles]] = True

    def note_verified(self, ends: IntArray) -> None:
        """Note that tiles were verified: those with cuts, of which ``ends`` are the numbers up to each tile."""
        self.fragment.verified[self.tiles[np.diff(ends, prepend=0) > 0]] = True

    def counts(self, capacity: int) -> IntArray:
        """Values in each tile: all are full but the fragment's last."""
        return np.where(self.tiles == len(self.fragment.rows) - 1, self.fragment.last_values, capacity)


@dataclass(frozen=True, eq=False)
class _Cuts:
    """Where the values of a read's rows lie: sizes of the rows, and per fragment what ``cut_tiles`` has filled."""

    sizes: IntArray
    of_fragments: list[tuple[Any, ...]]


class TileReader:
    """A :class:`~cellfeed.rows.row_allocator.Reader` over the files of one array.

    Parameters
    ----------
    index
        Where the tiles are.
    genes, value_dtype, columns, meter
        As for :class:`~cellfeed.sources.soma.tiledb_reader.SomaReader`.
    secrets
        Not to be told in messages.
    n_decoding
        Reads that unpack tiles at once; others wait for their files.
    verify
        Whether tiles must add up to what their writer noted in the metadata.
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
        self._holds_counts = True  # until a value says otherwise
        self._decoding = threading.Semaphore(n_decoding)
        self._lock = threading.Lock()
        self._free: list[_DecodeBuffers] = []
        self._closed = False

    def read(self, joinids: IntArray, space: RowAllocator) -> RowPointers:
        """Put the rows of ascending ``joinids`` where there is room for them."""
        bench = self._take_bench()
        try:
            with reraise_as(ReadError, failed_read(joinids, self._index.files), self._secrets):
                rows = self._read(joinids, space, bench)
        except BaseException:
            bench.close()  # and not used again: a request that was given up may still write to it
            raise
        self._give_bench(bench)
        return rows

    def _read(self, joinids: IntArray, space: RowAllocator, bench: _DecodeBuffers) -> RowPointers:
        started = time.perf_counter()
        runs = runs_of(joinids)
        pieces: list[Piece] = []
        packed = [
            self._locate(fragment, tiles, bench, str(k), pieces)
            for k, fragment in enumerate(self._index.fragments)
            if len(tiles := fragment.tiles_of(runs, self._columns, self._index.extent))
        ]
        self._index.files.read(pieces)
        read_s = time.perf_counter() - started
        with self._decoding:
            began = time.perf_counter()
            cuts = self._cut(joinids, runs, packed, bench)
            rows = None
            while rows is None:  # the second time nothing is assumed
                rows = self._fill(space, joinids, packed, cuts, bench)
        self._meter.add(
            read_s=read_s,
            build_s=time.perf_counter() - began,
            bytes_read=sum(tiles.n_bytes for tiles in packed),
            nnz=rows.nnz,
        )
        return rows

    def _locate(
        self, fragment: Fragment, tiles: IntArray, bench: _DecodeBuffers, name: str, pieces: list[Piece]
    ) -> _Packed:
        """Add the pieces of a fragment's files where tiles lie to those that are to be read."""
        data, places = [], np.empty((len(tiles), len(FIELDS), 2), np.int64)
        for k, field in enumerate(FIELDS):
            begin, end = fragment.offsets[k][tiles], fragment.offsets[k][tiles + 1]
            starts, stops = _ranges(begin, end, self._index.files.max_gap)
            into = np.append(0, np.cumsum(stops - starts))
            target = bench.room(name + field, int(into[-1]), np.uint8)
            file = f"{FRAGMENTS}/{fragment.name}/{field}.tdb"
            bounds = zip(starts.tolist(), into[:-1].tolist(), into[1:].tolist(), strict=True)
            pieces += [Piece(file, start, target[low:high]) for start, low, high in bounds]
            shift = (into[:-1] - starts)[np.searchsorted(starts, begin, side="right") - 1]
            places[:, k, 0], places[:, k, 1] = begin + shift, end + shift
            data.append(target)
        return _Packed(fragment, tiles, (data[0], data[1], data[2]), places)

    def _cut(self, joinids: IntArray, runs: IntArray, packed: list[_Packed], bench: _DecodeBuffers) -> _Cuts:
        """Unpack row numbers: how long each row is, and where its values lie in the tiles."""
        from cellfeed.sources.soma.tiles import row_kernels, unpack_kernels

        cuts = _Cuts(np.zeros(len(joinids), np.int64), [])
        before = np.cumsum(runs[:, 1] - runs[:, 0]) - (runs[:, 1] - runs[:, 0])
        wanted_runs = np.ascontiguousarray(runs[:, 0]), np.ascontiguousarray(runs[:, 1]), before
        for number, tiles in enumerate(packed):
            counts = tiles.counts(self._index.capacity)
            room = int(counts.sum()) // bench.values_per_cut + MIN_CUTS
            found = tuple(bench.room(f"cuts {k} of {number}", room, np.int32) for k in range(3))
            wanted = np.zeros((len(counts), -(-self._index.capacity // unpack_kernels.PIECE)), np.bool_)
            ends = np.empty(len(counts), np.int64)
            status, tile = row_kernels.cut_tiles(
                tiles.data[1], tiles.places[:, 1], counts, self._index.how[1], bench.zstd,
                bench.chunk, bench.rows, tiles.fragment.rows[tiles.tiles], wanted_runs, wanted, found, ends, cuts.sizes,
                tiles.row_sums(self._verify),
            )  # fmt: skip
            if status == row_kernels.FULL:
                bench.values_per_cut = max(1, bench.values_per_cut // 4)
                return self._cut(joinids, runs, packed, bench)
            if status == unpack_kernels.DAMAGED:
                raise self._damaged(tiles, tile)
            if self._verify:
                tiles.want_unverified(wanted)
            cuts.of_fragments.append((counts, wanted, found, ends))
        return cuts

    def _fill(
        self, space: RowAllocator, joinids: IntArray, packed: list[_Packed], cuts: _Cuts, bench: _DecodeBuffers
    ) -> RowPointers | None:
        """Unpack the rest and make rows of it; ``None`` if values are no counts, as was assumed until now."""
        from cellfeed.sources.soma.tiles import row_kernels, unpack_kernels

        dtype = self._smallest_type(packed)
        # Where some genes are not wanted, rows are shorter than what is unpacked of them: they are made aside.
        place = space.place if self._genes.keeps_all else bench.place
        rows = place(cuts.sizes, self._genes.dtype, dtype)
        rows_at = rows.where
        are_counts = dtype.itemsize <= 2 and dtype != self._value_dtype
        if are_counts and self._index.dtype == np.float32:
            fill: Any = row_kernels.fill_counts
            values = bench.room("counts", self._index.capacity, np.uint16)
            into = *rows_at[:4], dtype.itemsize
        else:
            fill = row_kernels.fill_values
            values = bench.room("values", self._index.capacity, self._index.dtype)
            into = *rows_at, are_counts
        how = self._index.how[0], self._index.how[2]
        genes = self._genes.table, self._genes.base
        disorder = False
        for tiles, (counts, wanted, found, ends) in zip(packed, cuts.of_fragments, strict=True):
            places = np.ascontiguousarray(tiles.places[:, ::2])
            where = (
                (tiles.data[0], tiles.data[2]),
                places,
                counts,
                how,
                bench.zstd,
                bench.chunk,
                (bench.columns, values),
            )
            noted = tiles.noted(self._index.n_columns, self._verify)
            status, tile = fill(*where, wanted, found, ends, genes, into, noted)
            if status == unpack_kernels.WIDE:
                self._holds_counts = False
                return None
            if status == unpack_kernels.DAMAGED:
                raise self._damaged(tiles, tile)
            disorder |= bool(status)
            if self._verify:
                tiles.note_verified(ends)
        if not self._genes.keeps_all:
            rows = rows.moved(space, sizes=rows_at[2])
        return rows.sorted(joinids) if disorder else rows

    def _smallest_type(self, packed: list[_Packed]) -> np.dtype[Any]:
        """Choose the type that holds the values of some tiles, if they are counts: metadata tell the largest."""
        largest = max((tiles.fragment.largest[tiles.tiles].max() for tiles in packed), default=0)
        if self._holds_counts:
            for dtype in (np.dtype(np.uint8), np.dtype(np.uint16)):
                if largest <= np.iinfo(dtype).max and dtype.itemsize <= self._value_dtype.itemsize:
                    return dtype
        return self._value_dtype

    def _damaged(self, tiles: _Packed, k: int) -> ReadError:
        return ReadError(
            f"tile {tiles.tiles[k]} of fragment {tiles.fragment.name!r} of {str(self._index.files)!r} is damaged: its "
            f"bytes are not those of its {tiles.counts(self._index.capacity)[k]} values"
        )

    def _take_bench(self) -> _DecodeBuffers:
        with self._lock:
            if self._closed:
                raise ReadError(f"the reader of {str(self._index.files)!r} is closed")
            return self._free.pop() if self._free else _DecodeBuffers(self._zstd, self._index)

    def _give_bench(self, bench: _DecodeBuffers) -> None:
        with self._lock:
            if not self._closed:
                self._free.append(bench)
                return
        bench.close()

    def close(self) -> None:
        """Give memory and files back; reading again is an error."""
        with self._lock:
            self._closed = True
            benches, self._free = self._free, []
        for bench in benches:
            bench.close()
        self._index.files.close()


def _ranges(begin: IntArray, end: IntArray, max_gap: int) -> tuple[IntArray, IntArray]:
    """Join pieces of a file that lie side by side, or nearly so."""
    breaks = np.flatnonzero(begin[1:] - end[:-1] > max_gap)
    return begin[np.append(0, breaks + 1)], end[np.append(breaks, len(end) - 1)]
