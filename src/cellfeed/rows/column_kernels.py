"""Kernels that give the genes of rows other columns; see :mod:`cellfeed.rows.columns`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from cellfeed.rows.compiled import compiled
from cellfeed.rows.kernels import UINT8, UINT16, array_at, copy_into

_UINT8, _UINT16 = np.empty(0, np.uint8), np.empty(0, np.uint16)


@intrinsic  # type: ignore[untyped-decorator]
def _count_bits(typing_context: Any, word: Any) -> Any:
    """Return the number of bits that are set in a word."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@compiled
def renumber(rows, widths, numbers, out):
    """Write rows with other columns, which ascend if those of the rows do.

    ``numbers`` has the new column of each gene, and ``widths`` are the types of values before and after.
    """
    for k in range(len(rows.sizes)):
        size = rows.sizes[k]
        genes = array_at(rows.genes[k], size, rows.gene_type)
        columns = array_at(out.genes[k], size, out.gene_type)
        for i in range(size):
            columns[i] = numbers[genes[i]]
        source, target = rows.values[k], out.values[k]
        if widths[k] == UINT8:
            copy_into(array_at(source, size, _UINT8), array_at(target, size, _UINT8))
        elif widths[k] == UINT16:
            copy_into(array_at(source, size, _UINT16), array_at(target, size, _UINT16))
        else:
            copy_into(array_at(source, size, rows.value_type), array_at(target, size, out.value_type))


@compiled(allocates=True)
def renumber_and_sort(rows, widths, numbers, n_columns, out):
    """Write rows with other columns, in ascending order; arguments as for :func:`renumber`.

    The columns of a row are marked in a table of bits. The place of a column is then the number of marks before it.
    """
    marks = np.zeros((n_columns + 63) // 64, np.uint64)
    before = np.empty(len(marks), np.uint32)  # number of marks before each word
    for k in range(len(rows.sizes)):
        size = rows.sizes[k]
        genes = array_at(rows.genes[k], size, rows.gene_type)
        columns = array_at(out.genes[k], size, out.gene_type)
        marks[:] = 0
        for i in range(size):
            column = numbers[genes[i]]
            marks[column >> 6] |= np.uint64(1) << np.uint64(column & 63)
        n = np.uint64(0)
        for word in range(len(marks)):
            before[word] = n
            n += _count_bits(marks[word])
        source, target = rows.values[k], out.values[k]
        if widths[k] == UINT8:
            _place(
                genes, array_at(source, size, _UINT8), numbers, marks, before, columns, array_at(target, size, _UINT8)
            )
        elif widths[k] == UINT16:
            values = array_at(source, size, _UINT16)
            _place(genes, values, numbers, marks, before, columns, array_at(target, size, _UINT16))
        else:
            values = array_at(source, size, rows.value_type)
            _place(genes, values, numbers, marks, before, columns, array_at(target, size, out.value_type))


@compiled(inline="always")
def _place(genes, values, numbers, marks, before, columns, placed):
    """Write the columns and values of a row in the order of the columns."""
    for i in range(len(genes)):
        column = numbers[genes[i]]
        word, bit = column >> 6, np.uint64(1) << np.uint64(column & 63)
        place = before[word] + np.uint32(_count_bits(marks[word] & (bit - np.uint64(1))))
        columns[place] = column
        placed[place] = values[i]
