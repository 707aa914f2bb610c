"""Rows that get other columns, by NumPy."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellfeed.rows.assemble import Assembler, DenseBuffers
from cellfeed.rows.cell_rows import CellRows
from cellfeed.rows.columns import Columns
from cellfeed.rows.row_allocator import RowPointers

TYPES = [np.uint8, np.uint16, np.float32, np.float64, np.int32]


def rows_of(dense, dtype):
    """The rows of a matrix in memory, and the arrays at their addresses."""
    genes = [np.flatnonzero(row).astype(np.uint16) for row in dense]
    values = [row[own].astype(dtype) for row, own in zip(dense, genes, strict=True)]
    sizes = np.array(list(map(len, genes)), np.int64)
    addresses = (np.array([array.ctypes.data for array in arrays], np.int64) for arrays in (genes, values))
    pointers = RowPointers(*addresses, sizes, np.dtype(np.uint16), np.dtype(dtype))
    return CellRows.from_pointers(pointers, np.arange(len(dense)), np.ones(len(dense), bool)), (genes, values)


@given(
    n_cells=st.integers(1, 5),
    n_genes=st.integers(1, 90),
    n_more=st.sampled_from([0, 1, 70, 70_000]),
    order=st.sampled_from(["same", "ascending", "any"]),
    dtype=st.sampled_from(TYPES),
    wide=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 2**32 - 1),
)
def test_values_come_in_their_columns_in_order(n_cells, n_genes, n_more, order, dtype, wide, seed):
    rng = np.random.default_rng(seed)
    dense = rng.integers(0, 256, (n_cells, n_genes)) * (rng.random((n_cells, n_genes)) < 0.5)
    n_columns = n_genes + n_more
    numbers = np.arange(n_genes) if order == "same" else rng.permutation(n_columns)[:n_genes]
    numbers = np.sort(numbers) if order == "ascending" else numbers
    rows, memory = rows_of(dense, dtype)
    columns = Columns(numbers.astype(np.uint32), n_columns)
    with ThreadPoolExecutor(2) as threads:
        changed = columns.of(rows, np.dtype(wide), DenseBuffers(keep=1), threads)
        assembler = Assembler(n_columns, "float32", n_threads=1, buffers=DenseBuffers(keep=0))
        X = assembler.sparse_X(changed)
        assembler.close()
    columns_of_rows = np.split(X.col_indices().numpy(), X.crow_indices().numpy()[1:-1])
    assert all((np.diff(own) > 0).all() for own in columns_of_rows)
    expected = np.zeros((n_cells, n_columns))
    expected[:, numbers] = dense
    assert np.array_equal(X.to_dense().numpy(), expected)
    del memory


def test_rows_that_keep_their_columns_are_not_copied():
    rows, _ = rows_of(np.eye(3), np.uint8)
    with ThreadPoolExecutor(1) as threads:
        assert Columns(np.arange(3, dtype=np.uint32), 4).of(rows, np.dtype("float32"), DenseBuffers(0), threads) is rows


@pytest.mark.parametrize(("genes", "numbers"), [([1, 0], [1, 0]), ([-1, 0, -1, 1], [1, 3]), ([], [])])
def test_columns_of_genes_that_are_missing_have_none(genes, numbers):
    columns = Columns.from_genes(np.array(genes, np.int64))
    assert columns.numbers.tolist() == numbers
    assert columns.n_columns == len(genes)
