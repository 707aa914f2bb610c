"""Rows by their addresses: kernels gather the values of the blocks."""

import gc
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from cellfeed.rows import kernels
from cellfeed.rows.cell_rows import CellRows
from tests.support.fakes import matrix, place, row_allocator
from tests.support.stores import addressed


def rows_of(X, dtype, first=0):
    """Rows of a matrix, as cells from ``first`` on."""
    n = X.shape[0]
    space, arenas = row_allocator(np.zeros(n, np.int64))
    rows = CellRows.from_pointers(place(X, space, dtype), np.arange(first, first + n), np.ones(n, np.bool_))
    return replace(rows, owners=arenas[0].slabs if arenas else ())


@given(
    sizes=st.lists(st.integers(0, 7), max_size=6),
    dtypes=st.lists(st.sampled_from(["uint8", "uint16", "float32"]), min_size=6, max_size=6),
    data=st.data(),
)
def test_gather_after_any_order_and_cuts(sizes, dtypes, data):
    """Row k belongs to position k, for any order and value types, after slicing and joining."""
    X = sp.csr_matrix(addressed(sum(sizes), 9, 0.5))
    X.data = np.arange(1, X.nnz + 1, dtype=np.float32) % 251  # counts that every type holds
    bounds = np.concatenate(([0], np.cumsum(sizes))).astype(int)
    reads = [rows_of(X[a:b], t, a) for a, b, t in zip(bounds[:-1], bounds[1:], dtypes, strict=False)]
    n = X.shape[0]
    order = np.array(data.draw(st.permutations(range(n))), np.int64)
    rows = CellRows.join(reads).take(order)
    edges = sorted([0, n, *data.draw(st.lists(st.integers(0, n), max_size=3))])
    parts = [rows.slice(low, high) for low, high in zip(edges[:-1], edges[1:], strict=True)]
    whole = CellRows.join(parts)
    assert np.array_equal(whole.positions, order)
    assert (matrix(whole, 9) != X[order]).nnz == 0


def test_addresses_live_as_long_as_the_rows():
    """Rows, and slices of them, keep their memory alive."""
    X = sp.csr_matrix(np.full((50, 40), 7, np.float32))
    rows = rows_of(X, "uint8").slice(10, 20)
    gc.collect()
    clutter = [np.full(4096, 99, np.uint8) for _ in range(500)]
    assert (matrix(rows, 40) != X[10:20]).nnz == 0
    del clutter


@pytest.mark.parametrize("dtype", ["uint32", "int64", "float64"])
def test_values_of_other_types(dtype):
    X = sp.csr_matrix(np.diag(np.arange(1.0, 6.0)))
    rows = rows_of(X, dtype)
    assert (matrix(rows, 5) != X).nnz == 0


@pytest.mark.parametrize("n_vars", [1, 17, 4095, 4096, 8211])
@pytest.mark.parametrize("dtype", ["int16", "float32", "float64"])
def test_dense_rows_of_any_width_and_at_any_address(n_vars, dtype):
    """Whole lines and the ends between them are written, and nothing else."""
    X = sp.csr_matrix(addressed(5, n_vars, 0.3))
    X.data = np.arange(1, X.nnz + 1, dtype=np.float32) % 251
    rows = rows_of(X, "uint16")
    for shift in (0, 1, 7):  # elements
        memory = np.full(shift + 5 * n_vars + 9, -1, dtype)
        dense = memory[shift : shift + 5 * n_vars].reshape(5, n_vars)
        kernels.gather_dense(rows.arrays, rows.widths, dense)
        assert np.array_equal(dense, X.toarray())
        assert (memory[:shift] == -1).all()
        assert (memory[shift + 5 * n_vars :] == -1).all()
