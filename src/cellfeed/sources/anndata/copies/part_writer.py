"""Writes an AnnData store in zarr v3, append-only: one part of a copy, by one process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any

from cellfeed._joinids import IntArray
from cellfeed.rows.cell_rows import CellRows
from cellfeed.sources.anndata.copies.journal import Journal, RowRecords
from cellfeed.sources.anndata.copies.layout import Layout
from cellfeed.sources.anndata.copies.matrix_writer import MatrixWriter
from cellfeed.sources.anndata.sealing import STORES_ALL_CHUNKS, seal, verified_compressors, writing_quietly

if TYPE_CHECKING:
    import pandas as pd

X = "X"

SETTINGS = "settings.json"
"""File in the folder of an unfinished part; it is written when the part can be continued."""

MAPPINGS = ("layers", "obsm", "obsp", "uns", "varm", "varp")
"""The groups that every AnnData store has beside X, obs and var."""


class PartWriter:
    """Appends rows to an AnnData store in a folder of its own, and renames it into place when it is complete.

    The folder has the store, and a journal by which another process can continue it (:meth:`recover`). A part has one
    writer at a time.

    Parameters
    ----------
    work
        The folder; nothing may be there.
    n_vars
        Number of columns.
    layers
        Names of the layers beside X.
    layout
        Layout of X and the layers.
    """

    def __init__(self, work: Path, *, n_vars: int, layers: tuple[str, ...] = (), layout: Layout | None = None) -> None:
        try:
            work.mkdir(parents=True)
        except FileExistsError:
            raise FileExistsError(f"{work} exists: continue it by PartWriter.recover, or remove it") from None
        self.work = work
        layout = layout or Layout()
        settings = {"n_vars": n_vars, "layers": layers, "layout": asdict(layout)}
        (work / "settings.partial").write_text(json.dumps(settings))
        self._matrices = {
            name: MatrixWriter(*_folders(work, name), n_vars=n_vars, layout=layout) for name in _names(layers)
        }
        (work / "settings.partial").rename(work / SETTINGS)

    @classmethod
    def recover(cls, work: Path) -> PartWriter | None:
        """Continue a part whose writer was killed, or failed, after the last row that is wholly on disk.

        The caller appends the other rows; :attr:`records` has the positions of those that are there.

        Returns
        -------
        PartWriter or None
            ``None`` if nothing had been written, or the store is in its place; the folder is removed then.
        """
        if not (work / SETTINGS).exists() or not (work / "store").exists():
            if work.exists():
                rmtree(work)
            return None
        settings = json.loads((work / SETTINGS).read_text())
        layout = Layout(**settings["layout"])
        names = _names(settings["layers"])
        _remove_elements(work / "store")
        n_rows = min(Journal(_folders(work, name)[1]).find() for name in names)
        writer = cls.__new__(cls)
        writer.work = work
        writer._matrices = {
            name: MatrixWriter.recover(*_folders(work, name), n_vars=settings["n_vars"], layout=layout, n_rows=n_rows)
            for name in names
        }
        return writer

    @property
    def n_rows(self) -> int:
        """Number of rows so far."""
        return self._matrices[X].n_rows

    @property
    def n_bytes(self) -> int:
        """Number of bytes of X and the layers so far."""
        return sum(matrix.n_bytes for matrix in self._matrices.values())

    @property
    def records(self) -> RowRecords:
        """Position in the selection, nnz and sum of each row of X so far, in their order."""
        return self._matrices[X].records

    @property
    def positions(self) -> IntArray:
        """Positions of the cells in the selection, in the order of the rows: int64, shape (n_rows,)."""
        return self.records["position"]

    def append(self, rows: CellRows, layers: Mapping[str, CellRows] | None = None) -> None:
        """Append rows of X, and the rows of the same cells of each layer.

        Raises
        ------
        OSError
            If the disk is full, for example. The complete shards stay, and :meth:`recover` continues after them.
        """
        for name, part in ((X, rows), *((f"layers/{name}", part) for name, part in (layers or {}).items())):
            self._matrices[name].append(part)

    def finish(
        self,
        path: Path,
        obs: pd.DataFrame,
        var: pd.DataFrame,
        uns: Mapping[str, Any] | None = None,
        obsm: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write obs, var, uns and obsm, and rename the store to a path; return the path."""
        self.complete(obs, var, uns, obsm)
        return self.put(path)

    def complete(
        self,
        obs: pd.DataFrame,
        var: pd.DataFrame,
        uns: Mapping[str, Any] | None = None,
        obsm: Mapping[str, Any] | None = None,
    ) -> None:
        """Write obs, var, uns and obsm."""
        if len(obs) != self.n_rows:
            raise ValueError(f"obs has {len(obs)} rows, and {self.n_rows} rows were appended")
        for matrix in self._matrices.values():
            matrix.close()
        with writing_quietly():
            embeddings = {f"obsm/{name}": rows for name, rows in (obsm or {}).items()}
            _write_elements(self.work / "store", {"obs": obs, "var": var, "uns": dict(uns or {}), **embeddings})

    def put(self, path: Path) -> Path:
        """Rename the store, which is complete, to a path where nothing is; return the path.

        Raises
        ------
        OSError
            If something is there, or another process has taken the part.
        """
        if not (self.work / SETTINGS).exists():  # zarr has made the folder again
            raise FileNotFoundError(f"another process continues {self.work}")
        (self.work / "store").rename(path)
        rmtree(self.work, ignore_errors=True)
        return path

    def abandon(self) -> None:
        """Close all files; what was written can be recovered."""
        for matrix in self._matrices.values():
            matrix.abandon()


def _write_elements(store: Path, elements: Mapping[str, Any]) -> None:
    """Write elements beside X by anndata, each array with a checksum, and the metadata of the store.

    They are encoded in memory first: zarr hands each access to a file to another thread, which takes longer than the
    many small files themselves.
    """
    import zarr
    from anndata.io import write_elem
    from zarr.storage import MemoryStore

    files: dict[str, Any] = {}
    group = zarr.open_group(MemoryStore(files), mode="a", zarr_format=3)
    group.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    for name in MAPPINGS:
        group.require_group(name).attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
    with zarr.config.set({f"array.{name}": value for name, value in STORES_ALL_CHUNKS.items()}):
        for name, element in elements.items():
            folder, _, key = name.rpartition("/")  # anndata 0.13 refuses a slash in a key
            into = group[folder] if folder else group
            write_elem(into, key, element, dataset_kwargs={"compressors": verified_compressors()})
    for name, content in files.items():
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_bytes(content.to_bytes())
    zarr.consolidate_metadata(store)
    seal(store)


def _remove_elements(store: Path) -> None:
    """Remove what :func:`_write_elements` has written, complete or not; X and the layers stay."""
    for element in (*store.glob("obs*"), *store.glob("var*"), store / "uns"):
        if element.exists():
            rmtree(element)
    for file in (*store.glob("zarr.*"), *store.glob("layers/zarr.*")):
        file.unlink()


def _names(layers: tuple[str, ...]) -> list[str]:
    return [X, *(f"layers/{name}" for name in layers)]


def _folders(work: Path, name: str) -> tuple[Path, Path]:
    """Return the folders of a matrix and of its journal."""
    return work / "store" / name, work / "journal" / name
