"""The inner loops, compiled by numba on first use and cached on disk.

All of them release the GIL. Imported late: numba takes most of a second to import.

Slices of a counted array are counted themselves, with two locked instructions each; in loops over stretches of a few
dozen values that was a sixth of all time. Loops here slice :func:`borrowed` arrays instead.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic

DROP = np.uint32(0xFFFFFFFF)
"""In a table of genes: this column of the array is not wanted."""

STRIDE = 16
"""Coordinates that are compared at once; a row of a Census has about 90 in a band of genes."""


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
def _pointer(typing_context: Any, address: Any, like: Any) -> Any:
    """Take a plain number for the address of something like the items of an array."""
    result = types.CPointer(like.dtype)

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(result))

    return result(types.int64, like), generate


@njit(nogil=True, cache=True)
def array_at(address, size, like):
    """Return an array over memory at an address, of the type of another array; its caller holds the memory."""
    return carray(_pointer(address, like), (size,))


_UINT8, _UINT16 = np.empty(0, np.uint8), np.empty(0, np.uint16)


@njit(nogil=True, cache=True)
def value_width(values):
    """Tell how small a type holds all values exactly: 0 for uint8, 1 for uint16, 2 for neither."""
    largest = 0
    for value in values:
        whole = np.int64(value) if 0 <= value <= 65535 else np.int64(-1)
        if whole != value or (value == 0 and np.signbit(value)):
            return 2
        largest = max(largest, whole)
    return 0 if largest <= 255 else 1


@njit(nogil=True, cache=True)
def narrow_float32(values, bits, target):
    """Copy float32 values to uint16 and tell their width, as :func:`value_width` does.

    ``bits`` are the values as int32. Width 2 says that ``target`` is of no use. One pass of straight lines, which
    become vector instructions.
    """
    every = np.int32(0)
    sign = np.int32(0)
    uneven = np.int32(0)
    for i in range(len(values)):
        value = values[i]
        whole = np.int32(value if 0 <= value <= 65536 else np.float32(0))  # a wild value has no int32, nor has NaN
        target[i] = whole
        every = np.int32(every | whole)
        sign = np.int32(sign | bits[i])  # set by every negative number, -0.0 among them
        uneven = np.int32(uneven | (np.float32(whole) != value))
    if uneven or sign < 0 or every > 65535:
        return 2
    return 0 if every <= 255 else 1


@njit(nogil=True, cache=True)
def narrow(source, target):
    """Copy with a change of type."""
    for i in range(len(source)):
        target[i] = source[i]


@njit(nogil=True, cache=True)
def _locate(joinid, first, stop, k):
    """Index of the run that holds ``joinid``, tried at ``k`` first; -1 if none does."""
    if first[k] <= joinid < stop[k]:
        return k
    low, high = 0, len(first)
    while low < high:  # rightmost first[] <= joinid
        middle = (low + high) // 2
        if first[middle] <= joinid:
            low = middle + 1
        else:
            high = middle
    low -= 1
    return low if low >= 0 and joinid < stop[low] else -1


@njit(nogil=True, cache=True)
def find_rows(dim0, start, first, stop, row0, run_row, run_size):
    """Cut a page, from ``start`` on, into stretches of one row each; -1 is the row of an unwanted one.

    ``first``, ``stop``, ``row0`` describe the wanted runs of joinids. Ends with the page or when the arrays of
    stretches are full. Returns where it ended, the number of stretches, and how many of them are unwanted.
    """
    dim0 = borrowed(dim0)
    n, i, k, n_runs, n_unwanted = len(dim0), start, 0, 0, 0
    while i < n and n_runs < len(run_row):
        joinid = dim0[i]
        end = i + 1
        while end + STRIDE <= n:
            change = np.int64(0)
            ahead = dim0[end : end + STRIDE]
            for q in range(STRIDE):
                change |= ahead[q] ^ joinid
            if change:
                break
            end += STRIDE
        while end < n and dim0[end] == joinid:
            end += 1
        found = _locate(joinid, first, stop, k)
        if found >= 0:
            k = found
            run_row[n_runs] = row0[k] + joinid - first[k]
        else:
            run_row[n_runs] = -1
            n_unwanted += 1
        run_size[n_runs] = end - i
        n_runs += 1
        i = end
    return i, n_runs, n_unwanted


@njit(nogil=True, cache=True)
def keep_rows(source, target, run_row, run_size):
    """Copy the stretches of wanted rows, with a change of type; returns how many elements they have."""
    source, target = borrowed(source), borrowed(target)
    at = kept = 0
    for k in range(len(run_row)):
        size = run_size[k]
        if run_row[k] >= 0:
            a, b = source[at : at + size], target[kept : kept + size]
            for i in range(size):
                b[i] = a[i]
            kept += size
        at += size
    return kept


@njit(nogil=True, cache=True)
def keep_genes(dim1, data, run_row, run_size, table, base, genes, values):
    """Copy the wanted genes of wanted rows; ``run_size`` becomes what is left. Returns how many there are."""
    at = kept = 0
    n_genes = len(table)
    for k in range(len(run_row)):
        size = run_size[k]
        begin = kept
        if run_row[k] >= 0:
            for p in range(at, at + size):
                place = dim1[p] - base
                if 0 <= place < n_genes and table[place] != DROP:
                    genes[kept] = table[place]
                    values[kept] = data[p]
                    kept += 1
        run_size[k] = kept - begin
        at += size
    return kept


@njit(nogil=True, cache=True)
def add_sizes(run_row, run_size, sizes):
    """Add the sizes of the stretches to those of their rows."""
    for k in range(len(run_row)):
        if run_row[k] >= 0:
            sizes[run_row[k]] += run_size[k]


@njit(nogil=True, cache=True)
def _copy(source, target):
    for i in range(len(source)):
        target[i] = source[i]


@njit(nogil=True, cache=True)
def scatter_page(genes, values, run_row, run_size, genes_at, values_at, filled, gene_type, value_type):
    """Move the staged stretches of one page to their rows; tell whether any row came out of order.

    The last five say where rows go, as :class:`~cellfeed.rowspace.PlacedRows` has it; ``filled`` is kept up.
    """
    genes, values = borrowed(genes), borrowed(values)
    p = 0
    disorder = np.uint8(0)
    for k in range(len(run_row)):
        row, size = run_row[k], run_size[k]
        if row < 0 or size == 0:
            continue
        at = filled[row]
        filled[row] = at + size
        to_g = array_at(genes_at[row], at + size, gene_type)
        _copy(genes[p : p + size], to_g[at:])
        _copy(values[p : p + size], array_at(values_at[row] + at * value_type.itemsize, size, value_type))
        p += size
        disorder = np.uint8(disorder | is_disordered(to_g, at))
    return disorder != 0


@njit(nogil=True, cache=True)
def is_disordered(genes, start):
    """Whether any gene from ``start`` on is not above the one before it."""
    later, earlier = genes[start + 1 :], genes[start : len(genes) - 1]
    disorder = np.uint8(start > 0 and start < len(genes) and genes[start - 1] >= genes[start])
    for i in range(len(later)):
        disorder = np.uint8(disorder | (later[i] <= earlier[i]))
    return disorder


@njit(nogil=True, cache=True)
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


@njit(nogil=True, cache=True)
def move_rows(genes_at, values_at, sizes, gene_type, value_type, new_genes_at, new_values_at):
    """Copy rows to other addresses."""
    for row in range(len(sizes)):
        size = sizes[row]
        _copy(array_at(genes_at[row], size, gene_type), array_at(new_genes_at[row], size, gene_type))
        _copy(array_at(values_at[row], size, value_type), array_at(new_values_at[row], size, value_type))


@njit(nogil=True, cache=True)
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


@njit(nogil=True, cache=True, fastmath={"reassoc"})
def sum_rows(values_at, sizes, value_type):
    """Add up the values of each row: float64, shape (n_rows,)."""
    sums = np.empty(len(sizes), np.float64)
    for row in range(len(sizes)):
        values = array_at(values_at[row], sizes[row], value_type)
        total = 0
        for i in range(len(values)):
            total += values[i]
        sums[row] = total
    return sums


@njit(nogil=True, cache=True)
def collect_values(values_at, indptr, value_type, out):
    """Copy the values of rows to one array, row after row."""
    out = borrowed(out)
    for row in range(len(values_at)):
        size = indptr[row + 1] - indptr[row]
        _copy(array_at(values_at[row], size, value_type), out[indptr[row] : indptr[row + 1]])


@njit(nogil=True, cache=True)
def put_values(values_at, indptr, values):
    """Copy values, row after row, to where the values of rows lie."""
    values = borrowed(values)
    for row in range(len(values_at)):
        size = indptr[row + 1] - indptr[row]
        _copy(values[indptr[row] : indptr[row + 1]], array_at(values_at[row], size, values))


@njit(nogil=True, cache=True)
def gather_dense(genes, values, sizes, widths, gene_type, value_type, out):
    """Write rows, of which addresses are known, as rows of a dense matrix, zeros included.

    ``genes`` to ``widths`` are those of :class:`~cellfeed.rows.Rows`; the two types are given by empty arrays.
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


@njit(nogil=True, cache=True)
def _put_dense(genes, values, row):
    for i in range(len(genes)):
        row[genes[i]] = values[i]


@njit(nogil=True, cache=True)
def gather_csr(genes, values, sizes, widths, gene_type, value_type, indptr, out_genes, out_values):
    """Write rows, of which addresses are known, as rows of a CSR matrix whose row pointers are known."""
    out_genes, out_values = borrowed(out_genes), borrowed(out_values)
    for k in range(len(sizes)):
        at, size = indptr[k], sizes[k]
        to_values = out_values[at : at + size]
        _copy(array_at(genes[k], size, gene_type), out_genes[at : at + size])
        if widths[k] == 1:
            _copy(array_at(values[k], size, _UINT8), to_values)
        elif widths[k] == 2:
            _copy(array_at(values[k], size, _UINT16), to_values)
        else:
            _copy(array_at(values[k], size, value_type), to_values)


@njit(nogil=True, cache=True)
def spread_csr(indptr, genes, values, out):
    """Write a valid CSR matrix as a dense one; what lies twice at a place is added up."""
    out = borrowed(out)
    for k in range(len(indptr) - 1):
        row = out[k]
        row[:] = 0
        for i in range(indptr[k], indptr[k + 1]):
            row[genes[i]] += values[i]
