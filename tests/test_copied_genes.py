"""The rows that kernels copy from an unpacked chunk: exactly the selected genes."""

import numpy as np
import pytest

from cellfeed.rows.row_allocator import RowArrays
from cellfeed.rows.row_builder import GeneTable
from cellfeed.sources.anndata.chunks import chunk_kernels


@pytest.mark.parametrize("genes", [range(2, 7), range(12), [2, 3, 5, 6], range(11, 12), range(1)])
@pytest.mark.parametrize("columns", [[0, 1, 2, 3, 6, 7, 9, 11], [7, 8], [3], [1, 11], [6, 3, 2], [7, 1]])
def test_the_selected_genes_of_a_row_are_copied(genes, columns):
    """Exactly those, numbered among the selected genes, and disorder is found where it would be seen."""
    columns, values = np.array(columns, np.uint16), np.arange(1, len(columns) + 1, dtype=np.uint8)
    found, counts = np.full(13, 99, np.uint16), np.zeros(13, np.uint8)
    addresses = np.array([found.ctypes.data]), np.array([counts.ctypes.data])
    rows = RowArrays(*addresses, np.zeros(1, np.int64), found[:0], counts[:0])
    table, start = GeneTable.from_joinids(np.array(genes), 12), np.zeros(1, np.int64)
    size = np.array([len(columns)])
    result, _, disorder = chunk_kernels.copy_rows(columns, values, start, start, size, 12, table.places, rows)
    kept = np.isin(columns, genes)
    expected = np.searchsorted(genes, columns[kept])
    n = int(rows.sizes[0])
    assert result == chunk_kernels.OK
    assert found[:n].tolist() == expected.tolist()
    assert counts[:n].tolist() == values[kept].tolist()
    assert disorder == bool((np.diff(expected) <= 0).any())


def test_a_column_behind_the_last_one_is_an_error():
    columns, start = np.array([0, 3, 12], np.uint16), np.zeros(1, np.int64)
    found = np.zeros(3, np.uint16)
    rows = RowArrays(np.array([found.ctypes.data]), np.array([found.ctypes.data]), start.copy(), found[:0], found[:0])
    for genes in (np.arange(12), np.arange(2, 5), np.array([2, 4])):
        places = GeneTable.from_joinids(genes, 12).places
        rows.sizes[:] = 0
        outcome = chunk_kernels.copy_rows(columns, columns, start, start, np.array([3]), 12, places, rows)
        assert outcome[0] == chunk_kernels.BAD_COLUMN
