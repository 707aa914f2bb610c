"""The inner loops over rows, compiled by numba on first use and cached on disk; what other such modules build on.

All of them release the GIL. Imported late: numba takes most of a second to import.

Slices of a counted array are counted themselves, with two locked instructions each; in loops over stretches of a few
dozen values that was a sixth of all time. Loops here slice :func:`borrowed` arrays instead.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from cellfeed.rows.compiled import compiled


@intrinsic
def borrowed(typing_context: Any, array: Any) -> Any:
    """Return an array over the same memory that numba does not count; its caller holds the memory."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        view = context.make_array(signature.return_type)(context, builder, value=arguments[0])
        view.meminfo = view.meminfo.type(None)
        view.parent = view.parent.type(None)
        return view._getvalue()

    return array(array), generate


@intrinsic  # type: ignore[untyped-decorator]
def array_at(typing_context: Any, address: Any, size: Any, like: Any) -> Any:
    """Return an array over memory at an address, of the type of another array; its caller holds the memory."""
    result = types.Array(like.dtype, 1, "C")

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        view = context.make_array(result)(context, builder)
        itemsize = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(like.dtype)))
        data = builder.inttoptr(arguments[0], view.data.type)
        populate_array(view, data, [arguments[1]], [itemsize], itemsize, meminfo=None)
        return view._getvalue()

    return result(types.int64, types.int64, like), generate


_UINT8, _UINT16 = np.empty(0, np.uint8), np.empty(0, np.uint16)


@compiled(inline="always")
def copy_into(source, target):
    """Copy with a change of type."""
    for i in range(len(source)):
        target[i] = source[i]


@compiled(inline="always")
def is_disordered(genes, start):
    """Whether any gene from ``start`` on is not above the one before it."""
    later, earlier = genes[start + 1 :], genes[start : len(genes) - 1]
    disorder = np.uint8(start > 0 and start < len(genes) and genes[start - 1] >= genes[start])
    for i in range(len(later)):
        disorder = np.uint8(disorder | (later[i] <= earlier[i]))
    return disorder


@compiled
def place_rows(sizes, part, row, gene_width, value_width, at, end, genes, values):
    """Give each row the next free bytes of its part: first its values, then its genes, both aligned.

    ``at`` and ``end``, int64, say where the memory of each part is free, and ends; ``at`` is kept up. Begins with
    ``row`` and ends at the first row for which there is no room; returns it, and the bytes that it needs.
    """
    while row < len(sizes):
        p = part[row]
        values_end = (at[p] + sizes[row] * value_width + 7) & ~7
        genes_end = (values_end + sizes[row] * gene_width + 7) & ~7
        if genes_end > end[p]:
            return row, genes_end - at[p] + 8
        values[row], genes[row], at[p] = at[p], values_end, genes_end
        row += 1
    return row, 0


@compiled
def move_rows(genes_at, values_at, sizes, gene_type, value_type, new_genes_at, new_values_at):
    """Copy rows to other addresses."""
    for row in range(len(sizes)):
        size = sizes[row]
        copy_into(array_at(genes_at[row], size, gene_type), array_at(new_genes_at[row], size, gene_type))
        copy_into(array_at(values_at[row], size, value_type), array_at(new_values_at[row], size, value_type))


@compiled
def sort_rows(genes_at, values_at, sizes, gene_type, value_type):
    """Sort each row by gene, in place; return the first row that holds a gene twice, and the gene; or -1 twice."""
    for row in range(len(sizes)):
        genes = array_at(genes_at[row], sizes[row], gene_type)
        values = array_at(values_at[row], sizes[row], value_type)
        order = np.argsort(genes, kind="mergesort")
        genes[:] = genes[order]
        values[:] = values[order]
        for p in range(1, len(genes)):
            if genes[p] == genes[p - 1]:
                return row, np.int64(genes[p])
    return -1, np.int64(-1)


@compiled
def sum_counts(values_at, sizes, width, sums, squares):
    """Add up the counts of each row, uint8 if ``width`` is 1, else uint16, and their squares: float64, shape (n_rows,).

    Squares are modulo 2**32: a vector instruction takes twice the 32-bit numbers of others.
    """
    for row in range(len(sizes)):
        if width == 1:
            sums[row], squares[row] = _sum_counts(array_at(values_at[row], sizes[row], _UINT8))
        else:
            sums[row], squares[row] = _sum_counts(array_at(values_at[row], sizes[row], _UINT16))


@compiled(inline="always")
def _sum_counts(counts):
    total, squared = np.int64(0), np.uint32(0)
    for low in range(0, len(counts), 1 << 15):  # sums of so few fit 32 bits
        part = counts[low : low + (1 << 15)]
        narrow = np.uint32(0)
        for i in range(len(part)):
            value = np.uint32(part[i])
            narrow = np.uint32(narrow + value)
            squared = np.uint32(squared + np.uint32(value * value))
        total += np.int64(narrow)
    return total, squared


@compiled(fastmath={"reassoc"})
def sum_values(values_at, sizes, value_type, sums, squares):
    """Add up the values of each row, and their squares: float64, shape (n_rows,) each."""
    for row in range(len(sizes)):
        values = array_at(values_at[row], sizes[row], value_type)
        added = 0
        squared = 0.0
        for i in range(len(values)):
            added += values[i]
            squared += np.float64(values[i]) * np.float64(values[i])
        sums[row], squares[row] = added, squared


@compiled
def collect_values(values_at, indptr, value_type, out):
    """Copy the values of rows to one array, row after row."""
    out = borrowed(out)
    for row in range(len(values_at)):
        size = indptr[row + 1] - indptr[row]
        copy_into(array_at(values_at[row], size, value_type), out[indptr[row] : indptr[row + 1]])


@compiled
def put_values(values_at, indptr, values):
    """Copy values, row after row, to where the values of rows lie."""
    values = borrowed(values)
    for row in range(len(values_at)):
        size = indptr[row + 1] - indptr[row]
        copy_into(values[indptr[row] : indptr[row + 1]], array_at(values_at[row], size, values))


@compiled
def gather_dense(genes, values, sizes, widths, gene_type, value_type, out):
    """Write rows, of which addresses are known, as rows of a dense matrix, zeros included.

    ``genes`` to ``widths`` are those of :class:`~cellfeed.rows.cell_rows.CellRows`; empty arrays give the two types.
    """
    out = borrowed(out)
    for k in range(len(sizes)):
        row, size = out[k], sizes[k]
        row[:] = 0
        g = array_at(genes[k], size, gene_type)
        if widths[k] == 1:
            _put_dense(g, array_at(values[k], size, _UINT8), row)
        elif widths[k] == 2:
            _put_dense(g, array_at(values[k], size, _UINT16), row)
        else:
            _put_dense(g, array_at(values[k], size, value_type), row)


@compiled(inline="always")
def _put_dense(genes, values, row):
    for i in range(len(genes)):
        row[genes[i]] = values[i]


@compiled
def gather_csr(genes, values, sizes, widths, gene_type, value_type, indptr, out_genes, out_values):
    """Write rows, of which addresses are known, as rows of a CSR matrix whose row pointers are known."""
    out_genes, out_values = borrowed(out_genes), borrowed(out_values)
    for k in range(len(sizes)):
        at, size = indptr[k], sizes[k]
        to_values = out_values[at : at + size]
        copy_into(array_at(genes[k], size, gene_type), out_genes[at : at + size])
        if widths[k] == 1:
            copy_into(array_at(values[k], size, _UINT8), to_values)
        elif widths[k] == 2:
            copy_into(array_at(values[k], size, _UINT16), to_values)
        else:
            copy_into(array_at(values[k], size, value_type), to_values)


@compiled
def spread_csr(indptr, genes, values, out):
    """Write a valid CSR matrix as a dense one; what lies twice at a place is added up."""
    out = borrowed(out)
    for k in range(len(indptr) - 1):
        row = out[k]
        row[:] = 0
        for i in range(indptr[k], indptr[k + 1]):
            row[genes[i]] += values[i]
