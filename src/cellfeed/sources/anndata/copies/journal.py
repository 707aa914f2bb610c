"""Describes the rows of a matrix that is being written: what a later process needs to continue it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cellfeed._joinids import IntArray
from cellfeed.rows.cell_rows import CellRows
from cellfeed.rows.row_sums import sums_of_rows

RowRecords = npt.NDArray[np.void]
"""Structured array, shape (n_rows,): ``position`` of the cell in the selection, ``nnz`` and ``sum`` of its row."""

RECORD = np.dtype([("position", "<i8"), ("nnz", "<i8"), ("sum", "<f8")])


def row_records(rows: CellRows, values: npt.NDArray[Any], starts: IntArray) -> RowRecords:
    """Return the records of rows whose values lie in one array, each from its start on."""
    records = np.empty(len(rows), RECORD)
    sums, _ = sums_of_rows(values.ctypes.data + starts * values.itemsize, rows.sizes, values.dtype)
    records["position"], records["nnz"], records["sum"] = rows.positions, rows.sizes, sums
    return records


class Journal:
    """Numbered files of records in a folder. A file appears when it is complete.

    Parameters
    ----------
    folder
        The folder; it is created.

    Attributes
    ----------
    n_parts
        Number of files that are valid.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.n_parts = 0
        folder.mkdir(parents=True, exist_ok=True)

    def append(self, records: RowRecords) -> None:
        """Write the next file."""
        self._write(self.n_parts, records)
        self.n_parts += 1

    def read(self) -> RowRecords:
        """Return the records of the valid files."""
        return np.concatenate([np.empty(0, RECORD), *(np.load(self._path(k)) for k in range(self.n_parts))])

    def find(self) -> int:
        """Regard all files of an earlier process as valid; return the number of their rows."""
        while self._path(self.n_parts).exists():
            self.n_parts += 1
        return len(self.read())

    def cut(self, n_rows: int) -> None:
        """Remove the records after the first ``n_rows``, the last ones first."""
        start = len(self.read())
        for k in reversed(range(self.n_parts)):
            records = np.load(self._path(k))
            start -= len(records)
            if start >= n_rows:
                self._path(k).unlink()
                self.n_parts = k
            elif start + len(records) > n_rows:
                self._write(k, records[: n_rows - start])

    def rewind(self, n_parts: int) -> RowRecords:
        """Regard the first ``n_parts`` files only as valid; return the records of the others, which stay on disk."""
        records = self.read()
        self.n_parts = n_parts
        return records[len(self.read()) :]

    def forget(self) -> None:
        """Remove the files that are not valid, the last one first."""
        valid = {self._path(k) for k in range(self.n_parts)}
        for path in sorted(set(self._folder.iterdir()) - valid, reverse=True):
            path.unlink()

    def _write(self, number: int, records: RowRecords) -> None:
        path = self._path(number)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.save(file, records)
        partial.replace(path)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:08}.npy"
