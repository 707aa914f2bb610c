"""A copy of the cells of a source on a local disk: the first epoch writes it, and later epochs read it.

A copy is a collection: a group of zarr whose members are AnnData stores, ``dataset_0`` and so on. Each is written by
one process and appears when it is complete. The attributes of the group describe the source, so that a copy of other
cells is refused. A copy by ``write_copy``, which is a single AnnData, is read as well.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cellfeed._joinids import JOINID, IntArray, JoinIds
from cellfeed.errors import SelectionError
from cellfeed.select.selection import Selection
from cellfeed.sources.anndata.copies import owner
from cellfeed.sources.anndata.copies.part_appender import PartAppender
from cellfeed.sources.anndata.copies.part_writer import PartWriter
from cellfeed.sources.anndata.copies.written_tables import WrittenTables
from cellfeed.sources.anndata.files import AnnDataFile
from cellfeed.sources.anndata.provenance import identity_of, read_provenance
from cellfeed.sources.anndata.query import make_source
from cellfeed.sources.anndata.sealing import seal
from cellfeed.sources.anndata.tables import read_table

COLLECTION = {"encoding-type": "annbatch-preshuffled", "encoding-version": "0.1.0"}
"""Attributes of a collection; its members are named ``dataset_0`` and so on. annbatch opens it."""


def create_collection(folder: Path, identity: Mapping[str, Any]) -> None:
    """Make a folder, with the parts in it if there are some, a collection of the cells that ``identity`` describes."""
    import zarr

    zarr.open_group(folder, mode="a", zarr_format=3, attributes={**COLLECTION, "cellfeed": dict(identity)})
    seal(folder)


class LocalCopy:
    """The copy of the cells of one selection at a path.

    Parameters
    ----------
    path
        A folder that does not exist yet, or a copy of the same cells and genes.
    selection
        All cells and genes of the copy.

    Raises
    ------
    SelectionError
        If something else is at the path, or a copy of another source, layer or other cells or genes.
    """

    def __init__(self, path: str | os.PathLike[str], selection: Selection) -> None:
        self.path = Path(path).absolute()
        self._selection = selection
        self._identity = identity_of(selection)
        self._found: tuple[tuple[str, ...], IntArray, IntArray] | None = None
        self.is_writable = True
        if self.path.exists():
            self._check()
        else:
            self._create()

    def _create(self) -> None:
        new = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex[:8]}")
        try:
            new.parent.mkdir(parents=True, exist_ok=True)
            create_collection(new, self._identity)
            new.rename(self.path)
        except OSError as cause:
            shutil.rmtree(new, ignore_errors=True)
            if not self.path.exists():  # no other process has created it
                raise SelectionError(f"local_copy={str(self.path)!r} cannot be written ({cause})") from cause
            self._check()

    def _check(self) -> None:
        """Raise an error if the path does not hold a copy of the selection."""
        shown = f"local_copy={str(self.path)!r}"
        found = self._describe()
        if not found:
            raise SelectionError(f"{shown} holds something else than a copy of cellfeed; give another path")
        for name, own in self._identity.items():
            if found.get(name) != own and (name != "X_identity" or None not in (own, found.get(name))):
                raise SelectionError(
                    f"{shown} is a copy of {name}={found.get(name)!r}, and this dataset has {name}={own!r}; give "
                    f"another path, or remove the copy if its source has changed"
                )
        self.is_writable = not self._is_single

    def _describe(self) -> Mapping[str, Any]:
        if not (self.path / "zarr.json").exists():
            return {}
        file = AnnDataFile(str(self.path), "zarr")
        with file.open() as root:
            found = root.attrs.get("cellfeed") or read_provenance(file).get("identity", {})
        return dict(found)

    @cached_property
    def _is_single(self) -> bool:
        return (self.path / "X").exists()

    # ------------------------------------------------------------------ reading

    def parts(self) -> tuple[str, ...]:
        """Return the paths of the complete parts, in order."""
        if self._is_single:
            return (str(self.path),)
        numbers = sorted(int(match[1]) for path in self.path.iterdir() if (match := re.fullmatch(PART, path.name)))
        return tuple(str(self.path / f"dataset_{number}") for number in numbers)

    def _cells(self) -> tuple[tuple[str, ...], IntArray, IntArray]:
        """Return the complete parts, their joinids ascending, and the row of each: a cell in two parts counts once."""
        parts = self.parts()
        if self._found is None or self._found[0] != parts:
            own = [read_table(AnnDataFile(part, "zarr"), "obs", [JOINID])[JOINID].to_numpy(np.int64) for part in parts]
            joinids, rows = np.unique(np.concatenate([*own, np.empty(0, np.int64)]), return_index=True)
            self._found = parts, joinids, rows.astype(np.int64)
        return self._found

    def find(self, selection: Selection) -> tuple[Selection, IntArray] | None:
        """Return the cells of a selection in the copy, and their positions in the selection; ``None`` if it lacks one.

        The cells are in the order of the copy.
        """
        parts, joinids, rows = self._cells()
        wanted = selection.joinid_column[:]
        places = np.searchsorted(joinids, wanted)
        if not len(parts) or len(joinids) < len(wanted) or not _same(joinids, places, wanted):
            return None
        own = rows[places]  # (n_obs,): the row of each cell
        order = np.argsort(own)
        files = [AnnDataFile(part, "zarr") for part in parts]
        copied = selection.take(order)
        columns = np.searchsorted(self._selection.var_joinids, selection.var_joinids)
        return replace(
            copied,
            source=make_source(str(self.path), files, "X", selection.geometry.dtype),
            joinids=JoinIds.from_sorted(own[order]),
            soma_joinids=wanted[order],
            var_joinids=columns.astype(np.int64),
            raw_sum=None,  # checksums show damage
            raw_squares=None,
        ), order

    def count(self, selection: Selection) -> int:
        """Return the number of cells of a selection that the copy has."""
        return int(np.isin(selection.joinid_column[:], self._cells()[1]).sum())

    # ------------------------------------------------------------------ writing

    def discard(self) -> None:
        """Remove the copy if nothing of it was written."""
        if [path.name for path in self.path.iterdir()] == ["zarr.json"]:
            shutil.rmtree(self.path)

    def appender(self, selection: Selection) -> PartAppender | None:
        """Return an object that appends the cells of a selection that the copy lacks; ``None`` for other genes."""
        if not np.array_equal(selection.var_joinids, self._selection.var_joinids):
            return None
        _, joinids, _ = self._cells()
        done = np.isin(selection.joinid_column[:], joinids)
        return PartAppender(self, selection, done)

    def open_writer(self, n_vars: int) -> PartWriter:
        """Continue a part whose writer has ended, or begin a new one."""
        writer = next(self.abandoned(), None)
        if writer is not None:
            return writer
        work = owner.new_part(self.path)
        try:
            return PartWriter(work, n_vars=n_vars)
        except BaseException:
            owner.release(work)
            raise

    def abandoned(self) -> Iterator[PartWriter]:
        """Take the parts whose writers have ended, one after another."""
        for work in owner.unfinished(self.path):
            if own := owner.take(work):
                writer = None
                try:
                    writer = PartWriter.recover(own)
                except (EOFError, KeyError, RuntimeError, ValueError):  # it is damaged, and its cells are read again
                    shutil.rmtree(own)
                if writer is not None:
                    yield writer
                else:
                    owner.release(own)

    def _put(self, writer: PartWriter) -> None:
        """Give a part that is complete the first number that is free."""
        for number in itertools.count():
            path = self.path / f"dataset_{number}"
            try:
                if not path.exists():
                    writer.put(path)
                    return
            except OSError:
                if not path.exists():  # otherwise another process has just taken the number
                    raise

    def complete(self, writer: PartWriter) -> None:
        """Complete a part, whose cells may be of another split of the copy; one without rows is removed."""
        if writer.n_rows == 0:
            writer.abandon()
            shutil.rmtree(writer.work)
            return
        writer.complete(*WrittenTables.read(self._selection, writer.records, self._identity))
        self._put(writer)


PART = r"dataset_(\d+)"
"""Names of the complete parts."""


def _same(joinids: IntArray, places: IntArray, wanted: IntArray) -> bool:
    return bool((places < len(joinids)).all()) and bool((joinids[places] == wanted).all())
