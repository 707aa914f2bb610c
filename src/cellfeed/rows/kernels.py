"""Loops over rows, compiled by numba on first use and cached on disk; other modules of kernels build on these.

All kernels release the GIL. Modules of kernels are imported inside functions: numba takes most of a second to import.
Named tuples as arguments, such as :class:`~cellfeed.rows.row_allocator.RowArrays`, cost about 1 µs per call.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from cellfeed.rows.cell_rows import ValueWidth
from cellfeed.rows.compiled import compiled
from cellfeed.rows.streaming import TILE_SIZE, finish_streams, stream_dense

UINT8, UINT16, WIDE = (int(width) for width in ValueWidth)

_UINT8, _UINT16 = np.empty(0, np.uint8), np.empty(0, np.uint16)


@intrinsic  # type: ignore[untyped-decorator]
def array_at(typing_context: Any, address: Any, size: Any, like: Any) -> Any:
    """Return an array of ``size`` elements of the type of ``like`` at an address; the caller keeps its memory alive."""
    result = types.Array(like.dtype, 1, "C")

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        view = context.make_array(result)(context, builder)
        itemsize = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(like.dtype)))
        data = builder.inttoptr(arguments[0], view.data.type)
        populate_array(view, data, [arguments[1]], [itemsize], itemsize, meminfo=None)
        return view._getvalue()

    return result(types.int64, types.int64, like), generate


@intrinsic  # type: ignore[untyped-decorator]
def call_at(typing_context: Any, address: Any, arguments: Any) -> Any:
    """Call the C function at an address; pointers are integers, so that compiled code can be cached."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        argument_types = [context.get_value_type(argument) for argument in signature.args[1]]
        function = ir.FunctionType(ir.IntType(64), argument_types).as_pointer()
        return builder.call(builder.inttoptr(values[0], function), cgutils.unpack_tuple(builder, values[1]))

    return types.int64(types.int64, arguments), generate


@compiled(inline="always")
def copy_into(source, target):
    """Copy values, converted to the type of the target."""
    for i in range(len(source)):
        target[i] = source[i]


@compiled(inline="always")
def is_disordered(genes, start):
    """Return whether any gene from ``start`` on is not greater than the gene before it."""
    later, earlier = genes[start + 1 :], genes[start : len(genes) - 1]
    disorder = np.uint8(start > 0 and start < len(genes) and genes[start - 1] >= genes[start])
    for i in range(len(later)):
        disorder = np.uint8(disorder | (later[i] <= earlier[i]))
    return disorder


@compiled
def place_rows(sizes, arena_numbers, row, gene_width, value_width, free, ends, genes, values):
    """Assign each row the next free bytes of its arena: first its values, then its genes, both aligned to 8 bytes.

    ``free`` and ``ends``, int64, shape (n_arenas,), are the addresses of the free bytes of each arena; ``free`` is
    advanced. Starts at ``row`` and stops at the first row for which its arena lacks memory. Returns that row and the
    bytes that it needs.
    """
    while row < len(sizes):
        arena = arena_numbers[row]
        values_end = (free[arena] + sizes[row] * value_width + 7) & ~7
        genes_end = (values_end + sizes[row] * gene_width + 7) & ~7
        if genes_end > ends[arena]:
            return row, genes_end - free[arena] + 8
        values[row], genes[row], free[arena] = free[arena], values_end, genes_end
        row += 1
    return row, 0


@compiled
def copy_rows(rows, copies):
    """Copy the first ``copies.sizes`` values of each row, and their genes, to other addresses."""
    for row in range(len(copies.sizes)):
        size = copies.sizes[row]
        genes, values = (rows.genes[row], copies.genes[row]), (rows.values[row], copies.values[row])
        copy_into(array_at(genes[0], size, rows.gene_type), array_at(genes[1], size, rows.gene_type))
        copy_into(array_at(values[0], size, rows.value_type), array_at(values[1], size, rows.value_type))


@compiled(allocates=True)
def sort_rows(rows):
    """Sort each row by gene, in place; return the first row that has a gene twice, and the gene, or -1 and -1."""
    for row in range(len(rows.sizes)):
        genes = array_at(rows.genes[row], rows.sizes[row], rows.gene_type)
        values = array_at(rows.values[row], rows.sizes[row], rows.value_type)
        order = np.argsort(genes, kind="mergesort")
        genes[:] = genes[order]
        values[:] = values[order]
        for i in range(1, len(genes)):
            if genes[i] == genes[i - 1]:
                return row, np.int64(genes[i])
    return -1, np.int64(-1)


@compiled
def sum_counts(addresses, sizes, width, sums, squares):
    """Sum the counts, and the squared counts, of each row: float64, shape (n_rows,) each.

    Counts are uint8 if ``width`` is ``UINT8``, else uint16. Sums of squares are modulo 2**32: a vector instruction
    processes 32-bit numbers at twice the rate of 64-bit numbers.
    """
    for row in range(len(sizes)):
        if width == UINT8:
            sums[row], squares[row] = _sum_counts(array_at(addresses[row], sizes[row], _UINT8))
        else:
            sums[row], squares[row] = _sum_counts(array_at(addresses[row], sizes[row], _UINT16))


@compiled(inline="always")
def _sum_counts(counts):
    total, squared = np.int64(0), np.uint32(0)
    for low in range(0, len(counts), 1 << 15):  # the sum of 2**15 values of 16 bits fits 32 bits
        part = counts[low : low + (1 << 15)]
        narrow = np.uint32(0)
        for i in range(len(part)):
            value = np.uint32(part[i])
            narrow = np.uint32(narrow + value)
            squared = np.uint32(squared + np.uint32(value * value))
        total += np.int64(narrow)
    return total, squared


@compiled(fastmath={"reassoc"})
def sum_values(addresses, sizes, value_type, sums, squares):
    """Sum the values, and the squared values, of each row: float64, shape (n_rows,) each."""
    for row in range(len(sizes)):
        values = array_at(addresses[row], sizes[row], value_type)
        total = 0
        squared = 0.0
        for i in range(len(values)):
            total += values[i]
            squared += np.float64(values[i]) * np.float64(values[i])
        sums[row], squares[row] = total, squared


@compiled
def collect_values(addresses, indptr, value_type, out):
    """Copy the values of rows, which lie at ``addresses``, to one array."""
    for row in range(len(addresses)):
        size = indptr[row + 1] - indptr[row]
        copy_into(array_at(addresses[row], size, value_type), out[indptr[row] : indptr[row + 1]])


@compiled
def put_values(addresses, indptr, values):
    """Copy values from one array to the addresses of rows."""
    for row in range(len(addresses)):
        size = indptr[row + 1] - indptr[row]
        copy_into(values[indptr[row] : indptr[row + 1]], array_at(addresses[row], size, values))


@compiled(allocates=True)
def gather_dense(rows, widths, out):
    """Write rows, of which ``widths`` are the types of values, to a dense matrix, shape (n_rows, n_vars)."""
    zeros = np.zeros(TILE_SIZE, out.dtype)
    for k in range(len(rows.sizes)):
        size, address = rows.sizes[k], rows.values[k]
        genes = array_at(rows.genes[k], size, rows.gene_type)
        if widths[k] == UINT8:
            stream_dense(genes, array_at(address, size, _UINT8), out[k], zeros)
        elif widths[k] == UINT16:
            stream_dense(genes, array_at(address, size, _UINT16), out[k], zeros)
        else:
            stream_dense(genes, array_at(address, size, rows.value_type), out[k], zeros)
    finish_streams()


@compiled
def gather_csr(rows, widths, csr):
    """Write rows, of which ``widths`` are the types of values, to a CSR matrix whose row pointers are filled."""
    out_genes, out_values = csr.genes, csr.values
    for k in range(len(rows.sizes)):
        low, size, address = csr.indptr[k], rows.sizes[k], rows.values[k]
        copy_into(array_at(rows.genes[k], size, rows.gene_type), out_genes[low : low + size])
        values = out_values[low : low + size]
        if widths[k] == UINT8:
            copy_into(array_at(address, size, _UINT8), values)
        elif widths[k] == UINT16:
            copy_into(array_at(address, size, _UINT16), values)
        else:
            copy_into(array_at(address, size, rows.value_type), values)


@compiled
def spread_csr(indptr, genes, values, out):
    """Write a valid CSR matrix to a dense matrix; several values of one place are added."""
    for k in range(len(indptr) - 1):
        dense = out[k]
        dense[:] = 0
        for i in range(indptr[k], indptr[k + 1]):
            dense[genes[i]] += values[i]
