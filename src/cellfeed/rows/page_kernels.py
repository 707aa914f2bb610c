"""From pages of coordinates and values to rows; compiled by numba, see :mod:`cellfeed.rows.kernels`."""

from __future__ import annotations

import numpy as np

from cellfeed.rows.compiled import compiled
from cellfeed.rows.kernels import array_at, borrowed, copy_into, is_disordered

DROP = np.uint32(0xFFFFFFFF)
"""In a table of genes: this column of the array is not wanted."""

STRIDE = 16
"""Coordinates that are compared at once; a row of a Census has about 90 in a band of genes."""


@compiled(inline="always")
def value_width(values):
    """Tell how small a type holds all values exactly: 0 for uint8, 1 for uint16, 2 for neither."""
    largest = 0
    for value in values:
        if not 0 <= value <= 65535:  # so is NaN
            return 2
        whole = np.int64(value)
        if whole != value or (value == 0 and np.signbit(value)):
            return 2
        largest = max(largest, whole)
    return 0 if largest <= 255 else 1


@compiled
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


@compiled(inline="always")
def end_of_stretch(rows, start):
    """Return the place behind the stretch of one row number that begins at ``start``; give a borrowed array."""
    joinid = rows[start]
    end = start + 1
    while end + STRIDE <= len(rows):
        change = np.int64(0)
        ahead = rows[end : end + STRIDE]
        for q in range(STRIDE):
            change |= ahead[q] ^ joinid
        if change:
            break
        end += STRIDE
    while end < len(rows) and rows[end] == joinid:
        end += 1
    return end


@compiled(inline="always")
def locate(joinid, first, stop, k):
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


@compiled
def find_rows(dim0, start, first, stop, row0, run_row, run_size):
    """Cut a page, from ``start`` on, into stretches of one row each; -1 is the row of an unwanted one.

    ``first``, ``stop``, ``row0`` describe the wanted runs of joinids. Ends with the page or when the arrays of
    stretches are full. Returns where it ended, the number of stretches, and how many of them are unwanted.
    """
    dim0 = borrowed(dim0)
    n, i, k, n_runs, n_unwanted = len(dim0), start, 0, 0, 0
    while i < n and n_runs < len(run_row):
        joinid = dim0[i]
        end = end_of_stretch(dim0, i)
        found = locate(joinid, first, stop, k)
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


@compiled
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


@compiled
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


@compiled
def add_sizes(run_row, run_size, sizes):
    """Add the sizes of the stretches to those of their rows."""
    for k in range(len(run_row)):
        if run_row[k] >= 0:
            sizes[run_row[k]] += run_size[k]


@compiled
def scatter_page(genes, values, run_row, run_size, genes_at, values_at, filled, gene_type, value_type):
    """Move the staged stretches of one page to their rows; tell whether any row came out of order.

    The last five say where rows go, as :class:`~cellfeed.rows.row_allocator.RowPointers` has it; ``filled`` is kept up.
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
        copy_into(genes[p : p + size], to_g[at:])
        copy_into(values[p : p + size], array_at(values_at[row] + at * value_type.itemsize, size, value_type))
        p += size
        disorder = np.uint8(disorder | is_disordered(to_g, at))
    return disorder != 0
