"""The rows of all cells of a dataset, read once and held in memory in their compact form."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator, Iterator
from dataclasses import replace

import numpy as np

from cellfeed._checks import format_bytes
from cellfeed.errors import PlanError
from cellfeed.loader.engine import Engine
from cellfeed.loader.reading import Reading, columns_of
from cellfeed.loader.world import available_threads
from cellfeed.plan.cells import Chunks
from cellfeed.plan.matrices import Matrix
from cellfeed.plan.settings import IN_ORDER
from cellfeed.rows.cell_rows import CellRows, ValueWidth
from cellfeed.rows.row_allocator import RowAllocator, RowPointers
from cellfeed.rows.slabs import SLAB_BYTES, Arena, Slab, SlabPool

HELD_SHARE = 0.5
"""Share of ``memory_budget`` that rows may take; reading takes the rest, and minibatches after it."""

ROWS_PER_STEP = 4096
"""Rows that are copied to the held memory together."""


def estimated_bytes(engine: Engine) -> int:
    """Return the bytes of the rows if all values are counts up to 255, each of which takes one.

    It is an upper limit if only some genes are selected, because obs counts the values of all genes.
    """
    matrix = Matrix(engine.selection, engine.settings)
    gene_bytes = matrix.value_bytes - matrix.pool_dtype.itemsize
    nnz = matrix.chunk_nnz(Chunks(np.array([0, engine.selection.n_obs]))).sum()
    return int(nnz) * (gene_bytes + 1)


def bytes_of(rows: CellRows) -> int:
    """Return the bytes of rows that were read."""
    return sum(slab.n_bytes for slab in rows.owners if isinstance(slab, Slab))


def check_fits(engine: Engine, n_bytes: int, share_read: float = 1.0) -> None:
    """Raise an error if rows of ``n_bytes``, which are a share of all, do not fit in half of ``memory_budget``."""
    selection, memory_budget = engine.selection, engine.settings.memory_budget
    if n_bytes > memory_budget * HELD_SHARE:
        whole = n_bytes / share_read
        raise PlanError(
            f"group_batches() holds its cells in memory: {selection.n_obs:,} cells x {selection.n_vars:,} genes take "
            f"about {format_bytes(whole)}, more than half of memory_budget={format_bytes(memory_budget)}; make the "
            f"dataset with memory_budget={format_bytes(2.2 * whole)!r}, or with fewer genes (select_genes) or cells "
            f"(obs_query)"
        )


def read_rows(engine: Engine) -> CellRows:
    """Read the rows of all cells, each row block once, from the local copy if it is complete.

    Returns
    -------
    The rows in the order of the selection. They own their memory.
    """
    medium = engine.media.copy or engine.media.source
    reader = reading_engine(engine)
    arena = Arena(SlabPool(SLAB_BYTES, engine.meter.hold))
    parts: list[CellRows] = []
    n_read = 0
    with contextlib.closing(_rows(reader)) as batches:
        for rows in batches:
            parts += _copies(rows, arena)
            n_read += len(rows)
            check_fits(engine, arena.n_bytes, n_read / reader.selection.n_obs)
    held = replace(CellRows.join(parts), owners=arena.slabs)
    positions = held.positions if medium.order is None else medium.order[held.positions]
    return held.take(np.argsort(positions))


def reading_engine(engine: Engine) -> Engine:
    """Return an engine that reads all cells in the order of their rows, in half of the memory.

    Raises
    ------
    PlanError
        If half of the memory is too small for one row block.
    """
    medium = engine.media.copy or engine.media.source
    settings = engine.settings.replace(
        **IN_ORDER, rank_remainder="uneven", rank=0, world_size=1, return_sparse_X=True, batch_size=ROWS_PER_STEP,
        memory_budget=max(1, engine.settings.memory_budget // 2),
    )  # fmt: skip
    try:
        return Engine(medium.selection, settings, meter=engine.meter)
    except PlanError as error:
        raise PlanError(f"group_batches() reads in half of memory_budget, which it needs twice: {error}") from error


def _rows(engine: Engine) -> Generator[CellRows, None, None]:
    """Yield the rows of all cells in order."""
    resources = engine.media.source.planner.resources(1, available_threads())
    windows = engine.epochs.work(engine.epochs.begin(), 0)
    columns = columns_of(engine.selection)
    for (rows,) in Reading(engine.selection, engine.settings, resources, windows, engine.meter, columns=columns).rows():
        yield rows


def _copies(rows: CellRows, arena: Arena) -> Iterator[CellRows]:
    """Yield copies of rows in memory of an arena, those of one type of values after another."""
    from cellfeed.rows import kernels

    for width in np.unique(rows.widths).tolist():
        own = rows.take(np.flatnonzero(rows.widths == width))
        dtype = rows.value_dtype if width == ValueWidth.WIDE else np.dtype(ValueWidth(width).name.lower())
        source = RowPointers(own.genes, own.values, own.sizes, own.gene_dtype, dtype)
        allocator = RowAllocator([arena], np.zeros(len(own), np.int64), threading.Lock())
        copies = allocator.allocate(own.sizes, own.gene_dtype, dtype)
        kernels.copy_rows(source.arrays, copies.arrays)
        yield replace(own, genes=copies.genes, values=copies.values, owners=())
