"""Pages of triples become canonical CSR, exactly, in any order and for any selection."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellfeed.errors import ReadError
from cellfeed.rows.row_builder import GeneTable, RowBuilder
from tests.support.fakes import as_csr, row_allocator


def build(rows, columns, values, joinids, genes, dtype=np.float32, page=7):
    """Build rows from pages; also return the owner of their memory."""
    space, arenas = row_allocator(np.zeros(len(joinids), np.int64))
    builder = RowBuilder(np.asarray(joinids, np.int64), genes, dtype)
    for at in range(0, len(rows), page):
        here = slice(at, at + page)
        builder.add(np.ascontiguousarray(rows[here]), np.ascontiguousarray(columns[here]), values[here])
    return as_csr(builder.finish(space), max(genes.n_vars, 1)), arenas


@settings(max_examples=200)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 30)),
    density=st.floats(0, 1),
    order=st.sampled_from(["tiles", "random", "two fragments"]),
    low=st.sampled_from([0, 3, 10**9]),
    page=st.integers(1, 200),
    scale=st.sampled_from([1, 300, 70_000, 0.5]),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_identity(shape, density, order, low, page, scale, seed, data):
    """Rows come in order, over the wanted genes; values and their order are exact."""
    rng = np.random.default_rng(seed)
    n_rows, n_columns = shape
    dense = (rng.random(shape) < density) * rng.integers(1, 200, shape) * scale
    dense = dense.astype(np.float32)
    rows, columns = np.nonzero(dense)
    values = dense[rows, columns]
    if order == "tiles":  # as one fragment has it: by band of genes, row, gene
        by = np.lexsort((columns, rows, columns // 8))
    elif order == "random":
        by = rng.permutation(len(rows))
    else:
        by = np.concatenate((np.arange(0, len(rows), 2), np.arange(1, len(rows), 2)))
    wanted = np.array(sorted(data.draw(st.sets(st.integers(0, n_rows - 1)))), np.int64)
    genes = np.array(sorted(data.draw(st.sets(st.integers(0, n_columns - 1)))), np.int64)
    X, _ = build(
        rows[by].astype(np.int64) + low,
        columns[by].astype(np.int64),
        values[by],
        wanted + low,
        GeneTable.from_joinids(genes, n_columns),
        page=page,
    )
    assert np.array_equal(X.toarray()[:, : len(genes)], dense[np.ix_(wanted, genes)])
    for k in range(X.shape[0]):
        assert np.all(np.diff(X.indices[X.indptr[k] : X.indptr[k + 1]]) > 0)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([0.0, 255.0], np.uint8),
        ([256.0, 1.0], np.uint16),
        ([65535.0], np.uint16),
        ([65536.0], np.float32),
        ([0.5, 1.0], np.float32),
        ([-1.0], np.float32),
        ([np.nan, 1.0], np.float32),
        ([np.inf], np.float32),
        ([-0.0], np.float32),
        ([], np.uint8),
    ],
)
def test_values_are_kept_in_the_smallest_type_that_holds_them_to_the_bit(values, dtype):
    values = np.array(values, np.float32)
    columns = np.arange(len(values))
    X, _ = build(np.zeros(len(values), np.int64), columns, values, [0], GeneTable.from_joinids(np.arange(5), 5))
    assert X.data.dtype == dtype
    assert X.data.astype(np.float32).tobytes() == values.tobytes()


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64, np.float32, np.float64])
def test_a_negative_value_is_no_count(dtype):
    """-1 beside small counts is -1 in every type that has a sign, not 255."""
    values = np.array([-1, 3, 100], dtype)
    genes = GeneTable.from_joinids(np.arange(3), 3)
    X, _ = build(np.zeros(3, np.int64), np.arange(3), values, [0], genes, dtype=dtype)
    assert X.data.dtype == dtype
    assert X.data.tolist() == [-1, 3, 100]


def test_types_of_pages_are_reconciled():
    """A small page, then a large value: nothing is cut off."""
    values = np.array([1, 2, 3, 1000, 4, 0.25], np.float32)
    genes = GeneTable.from_joinids(np.arange(6), 6)
    X, _ = build(np.zeros(6, np.int64), np.arange(6), values, [0], genes, page=2)
    assert X.data.tolist() == values.tolist()


def test_integer_layers_keep_large_values():
    values = np.array([1, 2**40], np.int64)
    genes = GeneTable.from_joinids(np.arange(2), 2)
    X, _ = build(np.zeros(2, np.int64), np.arange(2), values, [0], genes, dtype=np.int64)
    assert X.data.tolist() == values.tolist()


def test_a_value_that_is_stored_twice_is_an_error_that_names_the_cell():
    """Census arrays permit duplicates; they are never summed or dropped in silence."""
    genes = GeneTable.from_joinids(np.array([2, 5]), 6)
    with pytest.raises(ReadError, match=r"more than one value for soma_joinid 7 at selected gene 1"):
        build(np.array([6, 7, 7]), np.array([2, 5, 5]), np.ones(3, np.float32), [6, 7], genes)


def test_genes_too_far_apart_for_a_table():
    joinids = np.array([5, 10**12, 10**15])
    table = GeneTable.from_joinids(joinids, 2**60)
    columns = np.array([5, 6, 10**15, 10**12])
    X, _ = build(np.array([0, 0, 0, 1]), columns, np.arange(1, 5, dtype=np.float32), [0, 1], table)
    assert X.toarray().tolist() == [[1, 0, 3], [0, 4, 0]]


def test_many_genes_need_wider_places():
    table = GeneTable.from_joinids(np.arange(70_000), 70_000)
    X, _ = build(np.array([0]), np.array([69_999]), np.ones(1, np.float32), [0], table)
    assert X.indices.tolist() == [69_999]
