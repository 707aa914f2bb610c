"""Appends the cells of an epoch to a local copy; an error of the disk does not end the epoch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cellfeed._checks import warn_user
from cellfeed._joinids import IntArray
from cellfeed.errors import ReadError
from cellfeed.rows.cell_rows import CellRows
from cellfeed.select.selection import Selection
from cellfeed.sources.anndata.copies import owner
from cellfeed.sources.anndata.copies.part_writer import PartWriter

if TYPE_CHECKING:
    from cellfeed.sources.anndata.copies.local_copy import LocalCopy


class PartAppender:
    """Appends the cells of an epoch that a copy lacks to one part of it.

    An error of the disk ends the writing with a warning; the epoch continues.
    """

    def __init__(self, copy: LocalCopy, selection: Selection, done: npt.NDArray[np.bool_]) -> None:
        self._copy = copy
        self._selection = selection
        self._done = done  # (n_obs,): whether the copy has each cell
        self._writer: PartWriter | None = None

    def append(self, rows: CellRows) -> None:
        """Append the rows of cells that the copy lacks."""
        if not self._copy.is_writable:
            return
        if not len(self._lacking(rows)):
            return
        with self._failing():
            writer = self._open()  # the rows of a part that is continued are not lacking any more
            missing = rows.take(self._lacking(rows))
            self._done[missing.positions] = True
            writer.append(replace(missing, positions=self._selection.joinid_column[missing.positions]))

    def _lacking(self, rows: CellRows) -> IntArray:
        """Return the indices of rows of cells that the copy lacks, ascending: the first of several copies of a cell."""
        lacking = np.flatnonzero(rows.is_real & ~self._done[rows.positions])
        return lacking[np.sort(np.unique(rows.positions[lacking], return_index=True)[1])]

    def _open(self) -> PartWriter:
        """Return the writer; the rows of a part that is continued are done."""
        if self._writer is None:
            self._writer = self._copy.open_writer(self._selection.n_vars)
            self._done |= np.isin(self._selection.joinid_column[:], self._writer.positions)
        return self._writer

    def finish(self) -> None:
        """Complete the part, and those whose writers have ended, at the end of an epoch."""
        if not self._copy.is_writable:
            return
        with self._failing():
            if self._writer is not None:
                self._copy.complete(self._writer)
                self._release()
            for writer in self._copy.abandoned():
                self._writer = writer
                self._copy.complete(writer)
                self._release()

    def abandon(self) -> None:
        """Close the part; a later epoch continues it."""
        if self._writer is not None:
            self._writer.abandon()
            self._release()

    def _release(self) -> None:
        if self._writer is not None:
            owner.release(self._writer.work)
            self._writer = None

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ReadError) as cause:
            self._copy.is_writable = False
            with contextlib.suppress(OSError):
                self.abandon()
            warn_user(
                f"local_copy={str(self._copy.path)!r} is not written any more ({cause}); epochs continue, and read the "
                f"source. When the folder can be written, make the dataset again: the copy is continued"
            )
