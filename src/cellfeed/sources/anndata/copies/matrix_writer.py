"""Appends rows to a CSR matrix of AnnData in zarr v3, in memory of one chunk.

A matrix that is not closed is a folder of complete shards, and a journal that describes the rows in them. Number ``k``
of the journal is written after shard ``k`` of both ``indices`` and ``data``, so that it describes complete rows only.
"""

from __future__ import annotations

import json
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import numpy.typing as npt

from cellfeed._joinids import IntArray
from cellfeed.rows.assemble import CsrArrays
from cellfeed.rows.cell_rows import CellRows, ValueWidth
from cellfeed.sources.anndata.copies.journal import Journal, RowRecords, row_records
from cellfeed.sources.anndata.copies.layout import Array, Layout
from cellfeed.sources.anndata.copies.shard_writer import PARTIAL, ShardWriter
from cellfeed.sources.anndata.sealing import STORES_ALL_CHUNKS

MAX_UINT16_VARS = 1 << 16


class MatrixWriter:
    """Appends rows to a CSR matrix in a folder.

    Values have the smallest type that represents all of them: the first wider value encodes those before it again.

    Parameters
    ----------
    folder
        Folder of the matrix: a group of zarr when the matrix is closed.
    journal
        Folder of the journal; delete it when the store is in its place.
    n_vars
        Number of columns.
    layout
        Layout of ``indices`` and ``data``.
    dtype
        The first type of the values.

    Attributes
    ----------
    n_rows, nnz
        Number of rows and of values so far.
    """

    def __init__(
        self, folder: Path, journal: Path, *, n_vars: int, layout: Layout | None = None, dtype: npt.DTypeLike = np.uint8
    ) -> None:
        self.folder = folder
        self.n_rows = self.nnz = 0
        self._layout = layout or Layout()
        self._n_vars = n_vars
        self._journal = Journal(journal)
        self._pending: list[RowRecords] = []
        index_dtype = np.uint16 if n_vars <= MAX_UINT16_VARS else np.int32
        self._indices = ShardWriter(folder / "indices", index_dtype, "shuffle", self._layout)
        self._data = ShardWriter(folder / data_name(dtype), dtype, "bitshuffle", self._layout)
        capacity = self._layout.chunk_size + n_vars  # a row fits behind values that do not fill a chunk
        self._columns: Array = np.empty(capacity, index_dtype)
        self._values: Array = np.empty(capacity, dtype)
        self._n_buffered = 0
        self._is_open = True

    @property
    def n_bytes(self) -> int:
        """Number of bytes written so far."""
        return self._indices.n_bytes + self._data.n_bytes

    @property
    def records(self) -> RowRecords:
        """Position, nnz and sum of each row."""
        return np.concatenate([self._journal.read(), *self._pending])

    @property
    def _n_shards(self) -> int:
        return self._indices.n_chunks // self._layout.shard_chunks

    def append(self, rows: CellRows) -> None:
        """Append rows.

        Raises
        ------
        OSError
            If the disk is full, for example. The complete shards stay, and this writer takes no more rows.
        """
        self._check_open("append")
        if rows.sizes.max(initial=0) > self._n_vars:
            raise ValueError(f"a row has {rows.sizes.max()} values, and the matrix has {self._n_vars} columns")
        try:
            self._append(rows)
        except BaseException:
            self.abandon()
            raise

    def _check_open(self, action: str) -> None:
        if not self._is_open:
            raise ValueError(f"the writer of {self.folder} has failed or is closed; recover the part, then {action}")

    def _append(self, rows: CellRows) -> None:
        self._widen(rows)
        ends, low = np.cumsum(rows.sizes), 0
        while low < len(rows):
            room = len(self._columns) - self._n_buffered
            high = int(np.searchsorted(ends, ends[low] - rows.sizes[low] + room, side="right"))
            self._gather(rows.slice(low, high))
            self._write_chunks()
            low = high

    def _widen(self, rows: CellRows) -> None:
        """Change the type of values to one that represents those of the rows, too."""
        width = ValueWidth(rows.widths.max(initial=ValueWidth.UINT8))
        wide = rows.value_dtype if width == ValueWidth.WIDE else np.dtype(f"uint{8 * width}")
        dtype = np.result_type(self._data.dtype, wide)
        if dtype == self._data.dtype:
            return
        self._journal.forget()  # a shard that is being replaced is not encoded again
        self._data = self._data.recode(self.folder / data_name(dtype), dtype)
        self._values = self._values.astype(dtype)

    def _gather(self, rows: CellRows) -> None:
        """Copy rows behind the values in the buffers."""
        from cellfeed.rows import kernels

        starts: IntArray = np.cumsum(rows.sizes) - rows.sizes + self._n_buffered
        kernels.gather_csr(rows.arrays, rows.widths, CsrArrays(starts, self._columns, self._values))
        records = row_records(rows, self._values, starts)
        self._pending.append(records)
        n_values = int(records["nnz"].sum())
        self._n_buffered += n_values
        self.nnz += n_values
        self.n_rows += len(rows)

    def _write_chunks(self) -> None:
        """Write the full chunks of the buffers, and move the other values to the front."""
        size = self._layout.chunk_size
        n_full = self._n_buffered // size * size
        for low in range(0, n_full, size):
            self._write_chunk(low)
        n_left = self._n_buffered - n_full
        for buffer in (self._columns, self._values):
            buffer[:n_left] = buffer[n_full : self._n_buffered].copy()
        self._n_buffered = n_left

    def _write_chunk(self, low: int) -> None:
        chunk = slice(low, low + self._layout.chunk_size)
        n_shards = self._n_shards
        self._indices.append(self._columns[chunk])
        self._data.append(self._values[chunk])
        if self._n_shards > n_shards:
            self._write_journal(self._n_shards * self._layout.shard_size)

    def _write_journal(self, n_written: int) -> None:
        """Write the records of the rows that end within the first ``n_written`` values."""
        pending = np.concatenate(self._pending)
        ends = self.nnz - pending["nnz"].sum() + np.cumsum(pending["nnz"])
        n_complete = int(np.searchsorted(ends, n_written, side="right"))
        self._journal.append(pending[:n_complete])
        self._pending = [pending[n_complete:]]

    def close(self) -> None:
        """Complete the last shard, and write ``indptr`` and the metadata."""
        import zarr

        self._check_open("close")
        self._is_open = False
        if self._n_buffered:
            for buffer in (self._columns, self._values):
                buffer[self._n_buffered : self._layout.chunk_size] = 0
            self._write_chunk(0)
        self._indices.finish(self.nnz)
        self._data.finish(self.nnz)
        if any(len(part) for part in self._pending):
            self._write_journal(self.nnz)
        self._data.folder.rename(self.folder / "data")
        group = zarr.open_group(self.folder, mode="a", zarr_format=3)
        group.attrs.update(
            {
                "encoding-type": "csr_matrix",
                "encoding-version": "0.1.0",
                "shape": [self.n_rows, self._n_vars],
            }
        )
        indptr = np.concatenate([[0], np.cumsum(self.records["nnz"])])
        codecs = self._layout.codec(np.int64, "shuffle").zarr_codecs
        chunks = (min(len(indptr), 1 << 18),)
        group.create_array("indptr", data=indptr, chunks=chunks, compressors=codecs, config=STORES_ALL_CHUNKS)

    @classmethod
    def recover(cls, folder: Path, journal: Path, *, n_vars: int, layout: Layout, n_rows: int) -> MatrixWriter:
        """Continue a matrix after its first ``n_rows`` rows; the journal has them."""
        writer = cls(folder, journal, n_vars=n_vars, layout=layout, dtype=_reopen_folder(folder))
        writer._journal.find()
        writer._journal.cut(n_rows)
        records = writer._journal.read()
        writer.n_rows, writer.nnz = len(records), int(records["nnz"].sum())
        writer._pending = [writer._journal.rewind(writer.nnz // layout.shard_size)]
        columns, values = writer._indices.reopen(writer.nnz), writer._data.reopen(writer.nnz)
        writer._n_buffered = len(columns)
        writer._columns[: len(columns)], writer._values[: len(values)] = columns, values
        return writer

    def abandon(self) -> None:
        """Close the files and leave them as they are."""
        self._is_open = False
        self._indices.close()
        self._data.close()


def data_name(dtype: npt.DTypeLike) -> str:
    """Return the name of the folder of ``data`` until the matrix is closed: its type may change."""
    return f"data-{np.dtype(dtype).name}"


def _reopen_folder(folder: Path) -> np.dtype[Any]:
    """Undo :meth:`MatrixWriter.close`, and an encoding that was not completed; return the type of the values."""
    for partial in folder.glob(f"data-*{PARTIAL}"):
        rmtree(partial)
    if (folder / "data").exists():
        metadata = json.loads((folder / "data" / "zarr.json").read_bytes())
        (folder / "data").rename(folder / data_name(metadata["data_type"]))
    if (folder / "indptr").exists():
        rmtree(folder / "indptr")
    for file in folder.glob("**/zarr.*"):  # zarr writes to zarr.….partial first
        file.unlink()
    found = {np.dtype(path.name.partition("-")[2]): path for path in folder.glob("data-*")}
    *narrower, dtype = sorted(found, key=lambda dtype: dtype.itemsize) or [np.dtype(np.uint8)]
    for other in narrower:
        rmtree(found[other])
    return dtype
