"""Writes a copy of all cells of a dataset at once; see :meth:`cellfeed.ExperimentDataset.write_copy`."""

from __future__ import annotations

import contextlib
import json
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cellfeed._checks import format_bytes
from cellfeed._progress import progress_bar
from cellfeed.errors import PlanError, SelectionError
from cellfeed.loader.engine import Engine
from cellfeed.loader.reading import Reading
from cellfeed.loader.world import available_threads
from cellfeed.plan.epoch import World
from cellfeed.plan.windows import ShardWindows
from cellfeed.rows.cell_rows import CellRows
from cellfeed.select.selection import Selection

if TYPE_CHECKING:
    from cellfeed.sources.anndata.copies.part_writer import PartWriter

ROWS_PER_STEP = 1024
"""Cells that are appended together."""

COMPRESSIONS = {"lz4": 1.0, "zstd": 0.88}
"""Bytes of a copy relative to one by LZ4."""

CELLS_PER_PART = 1 << 20
"""Cells of a part of a copy that several processes write. It does not depend on their number."""


def write_copy(
    engine: Engine,
    path: Path,
    *,
    compression: str,
    obs_columns: Sequence[str] | None,
    client: Any,
    progress: bool,
) -> Path:
    """Write the cells of an engine, shuffled, to an AnnData in zarr, or with a client to a collection."""
    if compression not in COMPRESSIONS:
        raise PlanError(f'compression={compression!r} must be "lz4" or "zstd"')
    if path.exists():
        raise SelectionError(f"path={str(path)!r} exists; give another path, or remove it")
    if obs_columns is not None:
        from cellfeed.sources.anndata.copies.written_tables import check_columns

        check_columns(engine.selection, obs_columns)
        obs_columns = list(dict.fromkeys([*obs_columns, *engine.selection.content.obs_values]))
    check_matrices(engine.selection)
    engine = Engine(engine.selection, engine.settings.replace(**_IN_RANDOM_ORDER))
    check_space(engine, path, compression)
    if client is None:
        return write_part(engine, path, compression, obs_columns, progress=progress)
    return _write_parts(engine, path, compression, obs_columns, client, progress=progress)


_IN_RANDOM_ORDER = {
    "shuffle": True, "seed": 0, "drop_last": False, "return_sparse_X": True, "X_dtype": "stored", "transform": None,
    "soma_chunk_size": None, "shuffle_chunk_count": None, "mixing": None, "batch_size": ROWS_PER_STEP, "rank": 0,
    "world_size": 1, "rank_remainder": "uneven",
}  # fmt: skip


def check_matrices(selection: Selection) -> None:
    """Raise an error if a dataset has matrices that an AnnData cannot have."""
    for matrix in selection.matrices:
        if matrix.kind != "layers":
            raise SelectionError(
                f"write_copy writes an AnnData, which has one measurement, and the dataset has {matrix.name!r}, too; "
                f"write the copy of a dataset without measurements="
            )


def check_space(engine: Engine, path: Path, compression: str) -> None:
    """Raise an error if a disk has less space than the copy takes."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    wanted = int(engine.media.source.planner.copy_bytes * COMPRESSIONS[compression])
    free = shutil.disk_usage(folder).free
    done = bytes_of_files(Path(f"{path}.partial"))
    if engine.selection.all_genes and wanted - done > free:
        raise SelectionError(
            f"path={str(path)!r}: the copy takes about {format_bytes(wanted - done)}, and {str(folder)!r} has "
            f"{format_bytes(free)} free; give a path on a larger disk, fewer cells (obs_query=) or compression='zstd'"
        )


def bytes_of_files(folder: Path) -> int:
    """Return the bytes of all files in a folder and below it."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def write_part(
    engine: Engine,
    path: Path,
    compression: str,
    obs_columns: Sequence[str] | None,
    *,
    progress: bool = False,
    by_force: bool = False,
) -> Path:
    """Write the cells of an engine to an AnnData in zarr; a part that was begun is continued.

    ``by_force`` continues a part that another process writes, whose writing then ends with an error.
    """
    from cellfeed.sources.anndata.copies.written_tables import WrittenTables, obsm_of
    from cellfeed.sources.anndata.provenance import identity_of, written_name

    engine = _mixing_most(engine)
    selection, identity = engine.selection, identity_of(engine.selection)
    order = repr(engine.media.source.planner.shuffle_plan())  # a copy is continued in the order in which it began
    begun = {**identity, **_more(selection), "compression": compression, "order": order}
    names = [written_name(matrix) for matrix in selection.matrices]
    with _opened_writer(path, selection.n_vars, names, compression, begun, by_force=by_force) as writer:
        with progress_bar(progress, total=selection.n_obs, initial=writer.n_rows, unit=" cells") as bar:
            for matrices in _rows(engine, writer.n_rows):
                joinids = selection.joinid_column[matrices[0].positions]
                rows, *layers = (replace(matrix, positions=joinids) for matrix in matrices)
                writer.append(rows, dict(zip(names, layers, strict=True)))
                bar.update(len(rows))
        tables = WrittenTables.read(selection, writer.records, identity, obs_columns)
        return writer.finish(path, *tables, obsm_of(selection, writer.records))


def _more(selection: Selection) -> dict[str, list[str]]:
    """Return what a copy has beside X, as far as it can be continued with the same only."""
    return {"layers": [matrix.X_name for matrix in selection.matrices], "obsm": list(selection.obsm)}


def _mixing_most(engine: Engine) -> Engine:
    """Return an engine whose pool is full from the first minibatch on.

    By default, the first cells of an epoch are mixed less, so that a training loop starts soon.
    """
    mixing = engine.media.source.planner.mixing_of_row_blocks
    return Engine(engine.selection, engine.settings.replace(mixing=mixing or None))


@contextlib.contextmanager
def _opened_writer(
    path: Path, n_vars: int, layers: Sequence[str], compression: Any, identity: dict[str, Any], *, by_force: bool
) -> Iterator[PartWriter]:
    """Yield a writer that continues the copy at a path, or begins it; it is closed, and removed with a copy."""
    from cellfeed.sources.anndata.copies import owner
    from cellfeed.sources.anndata.copies.layout import Layout
    from cellfeed.sources.anndata.copies.part_writer import PartWriter

    folder = Path(f"{path}.partial")
    try:
        with contextlib.ExitStack() as stack:
            work = _take_part(folder, identity, by_force=by_force)
            stack.callback(owner.release, work)
            layout = Layout(compression=compression)
            writer = PartWriter.recover(work) or PartWriter(work, n_vars=n_vars, layers=tuple(layers), layout=layout)
            stack.callback(writer.abandon)
            yield writer
        shutil.rmtree(folder, ignore_errors=True)
    except OSError as cause:
        raise SelectionError(
            f"path={str(path)!r} cannot be written ({cause}); what was written stays in {folder.name}: free the disk "
            f"and call write_copy again, which continues the copy, or remove that folder"
        ) from cause


def _take_part(folder: Path, identity: dict[str, Any], *, by_force: bool) -> Path:
    """Return the unfinished part in the folder of a copy that was begun, or that begins now; this process owns it."""
    from cellfeed.sources.anndata.copies import owner

    _begin(folder, identity)
    if not owner.unfinished(folder):
        (folder / owner.FREE).mkdir(exist_ok=True)
    for work in owner.unfinished(folder):
        if own := owner.take(work, by_force=by_force):
            return own
    raise SelectionError(
        f"another process writes {str(folder.with_suffix(''))!r} at this time; wait for it, or give another path"
    )


def _begin(folder: Path, identity: dict[str, Any]) -> None:
    """Make the folder of a copy that is not complete; raise an error if it is there for another copy."""
    from cellfeed.sources.anndata.copies import owner

    described = folder / "identity.json"
    if not folder.exists():
        new = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}")
        try:
            (new / owner.FREE).mkdir(parents=True)
            (new / described.name).write_text(json.dumps(identity))
            new.rename(folder)
        except OSError:
            shutil.rmtree(new, ignore_errors=True)
            if not folder.exists():  # no other process has begun it
                raise
    if not described.exists() or json.loads(described.read_text()) != identity:
        raise SelectionError(
            f"path={str(folder.with_suffix(''))!r}: {folder.name} is the beginning of a copy of other cells, or with "
            f"another compression or memory_budget; remove it, or give another path"
        )


def _rows(engine: Engine, n_done: int) -> Iterator[list[CellRows]]:
    """Yield the rows of X, and of each layer, in the order of epoch 0, after the first ``n_done``."""
    planner = engine.media.source.planner
    order = planner.epoch_order(0)
    shard = ShardWindows(order, *order.shard(World()))
    resources = planner.resources(1, available_threads())
    yield from Reading(engine.selection, engine.settings, resources, shard.windows(n_done), engine.meter).rows()


def _write_parts(
    engine: Engine, path: Path, compression: str, obs_columns: Sequence[str] | None, client: Any, *, progress: bool
) -> Path:
    """Write a collection by the workers of a ``dask.distributed.Client``; a task that fails is repeated."""
    from distributed import as_completed

    from cellfeed.sources.anndata.copies import owner
    from cellfeed.sources.anndata.copies.local_copy import create_collection
    from cellfeed.sources.anndata.provenance import identity_of

    work, identity = Path(f"{path.absolute()}.partial"), identity_of(engine.selection)
    _begin(work, {**identity, **_more(engine.selection), "compression": compression})
    tasks = {}
    for k, part in enumerate(_parts_of(engine)):
        task = client.submit(_write_in_task, part, work / f"dataset_{k}", compression, obs_columns, pure=False)
        tasks[task] = part.selection.n_obs
    with progress_bar(progress, total=engine.selection.n_obs, unit=" cells") as bar:
        for task in as_completed(tasks):
            task.result()
            bar.update(tasks[task])
    create_collection(work, identity)
    work.rename(path)
    for left in (path / "identity.json", *owner.unfinished(path)):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    return path


def _parts_of(engine: Engine) -> Iterator[Engine]:
    """Yield engines of disjoint parts of the cells, from random places; their number depends on that of cells only."""
    n_parts = max(1, -(-engine.selection.n_obs // CELLS_PER_PART))
    order = engine.media.source.planner.epoch_order(0)
    for rank in range(n_parts):
        windows = ShardWindows(order, *order.shard(World(rank, n_parts))).windows()
        positions = np.concatenate([fetch.positions for window in windows for fetch in window.fetches])
        yield Engine(engine.selection.take(np.sort(positions)), engine.settings)


def _write_in_task(engine: Engine, path: Path, compression: str, obs_columns: Sequence[str] | None) -> None:
    """Write one part, in a process of dask; a part that is complete stays as it is.

    The process that began the part may run although dask has lost it, so that the part is taken from it.
    """
    try:
        if not path.exists():
            write_part(engine, path, compression, obs_columns, by_force=True)
    except SelectionError:
        if not path.exists():  # otherwise another process has completed it meanwhile
            raise
