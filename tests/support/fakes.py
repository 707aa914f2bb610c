"""Readers without a store."""

from __future__ import annotations

import threading
import time
from collections import Counter

import numpy as np
import scipy.sparse as sp

from cellfeed.plan.copy_windows import windows_of_shard
from cellfeed.rows import kernels
from cellfeed.rows.assemble import CsrArrays
from cellfeed.rows.row_allocator import RowAllocator, RowPointers
from cellfeed.rows.slabs import Arena, SlabPool
from cellfeed.stats import Meter


def leaving(windows):
    """The cells that each window yields, without the feed: positions, and whether they are real."""
    pool = []
    for window in windows:
        for fetch in window.fetches:
            n_parts = int(fetch.window_offset.max(initial=-1)) + 1
            pool += [[] for _ in range(n_parts - len(pool))]
            by_window = np.argsort(fetch.window_offset, kind="stable")
            edges = np.searchsorted(fetch.window_offset[by_window], np.arange(n_parts + 1))
            for after in range(n_parts):
                here = by_window[edges[after] : edges[after + 1]]
                pool[after].append((fetch.positions[here], fetch.is_real[here]))
        parts = pool.pop(0) if pool else []
        order = window.order[window.n_skipped :]
        yield (
            np.concatenate([np.empty(0, np.int64), *(positions for positions, _ in parts)])[order],
            np.concatenate([np.empty(0, np.bool_), *(is_real for _, is_real in parts)])[order],
        )


def chunks_leaving(windows):
    """The same, as a list of pairs for each window."""
    for positions, is_real in leaving(windows):
        yield list(zip(positions.tolist(), is_real.tolist(), strict=True))


def shard_windows(plan, world):
    """The windows of one worker, from the beginning of an epoch."""
    return windows_of_shard(plan, *plan.shard(world))


def cells(plan, world):
    """Positions that one worker yields, in order."""
    parts = [positions for positions, _ in leaving(shard_windows(plan, world).windows())]
    return np.concatenate([*parts, np.empty(0, np.int64)])


def real_cells(plan, world):
    """The positions of cells that are not repeated cells."""
    parts = [positions[is_real] for positions, is_real in leaving(shard_windows(plan, world).windows())]
    return np.concatenate([*parts, np.empty(0, np.int64)])


def planned(plan):
    """How often each cell comes in an epoch."""
    return Counter((np.arange(plan.n_cells) if plan.cells is None else plan.cells).tolist())


def row_allocator(part, *, slab_bytes=4096):
    """Allocate rows in arenas, one per part."""
    pool = SlabPool(slab_bytes, Meter().hold)
    arenas = [Arena(pool) for _ in range(int(max(part, default=-1)) + 1)]
    return RowAllocator(arenas, np.asarray(part, np.int64), threading.Lock()), arenas


def place(X: sp.csr_matrix, space: RowAllocator, dtype: np.typing.DTypeLike) -> RowPointers:
    """Copy the rows of a matrix to allocated memory."""
    indptr = X.indptr.astype(np.int64)
    rows = space.allocate(np.diff(indptr), np.uint16, dtype)
    kernels.put_values(rows.genes, indptr, X.indices.astype(np.uint16))
    kernels.put_values(rows.values, indptr, X.data.astype(dtype))
    return rows


def as_csr(rows: RowPointers, n_vars: int) -> sp.csr_matrix:
    """Return the content of rows; values keep their type."""
    indptr = np.append(0, np.cumsum(rows.sizes))
    gene_type, value_type = rows.types
    genes, values = np.empty(indptr[-1], gene_type.dtype), np.empty(indptr[-1], value_type.dtype)
    kernels.collect_values(rows.genes, indptr, gene_type, genes)
    kernels.collect_values(rows.values, indptr, value_type, values)
    X = sp.csr_matrix((len(rows.sizes), n_vars), dtype=np.float32)
    X.indptr, X.indices, X.data = indptr, genes.astype(np.int64), values  # in the order of memory, with duplicates
    return X


def matrix(rows, n_vars):
    """Gather rows as CSR and as dense, which must agree, and return them."""
    indptr = np.concatenate(([0], np.cumsum(rows.sizes)))
    genes, values = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)
    dense = np.full((len(rows), n_vars), np.nan, np.float32)
    kernels.gather_csr(rows.arrays, rows.widths, CsrArrays(indptr[:-1], genes, values))
    kernels.gather_dense(rows.arrays, rows.widths, dense)
    X = sp.csr_matrix((values, genes, indptr), shape=dense.shape)
    assert np.array_equal(X.toarray(), dense)
    return X


class FakeReader:
    """A reader of a matrix in memory; row ``i`` is joinid ``i``. It records its reads and counts concurrent ones."""

    def __init__(self, X: sp.csr_matrix, *, delay_s: float = 0.0, fail_at: int | None = None) -> None:
        self.X = X
        self.delay_s = delay_s
        self.fail_at = fail_at
        self.reads: list[np.ndarray] = []
        self.closed = False
        self._lock = threading.Lock()

    def read(self, joinids: np.ndarray, space: RowAllocator) -> RowPointers:
        with self._lock:
            self.reads.append(joinids)
        time.sleep(self.delay_s)
        if self.fail_at is not None and self.fail_at in joinids:
            raise RuntimeError(f"no luck with {self.fail_at}")
        rows = self.X[joinids]
        rows.sort_indices()
        return place(rows, space, rows.dtype)

    def close(self) -> None:
        self.closed = True
