"""Kernels from pages of coordinates and values to rows; see :mod:`cellfeed.rows.kernels`.

A segment is a run of consecutive elements of the same row. The segments of a page are two arrays, int32, shape
(n_segments,): the index of each segment's row, -1 if the row is not wanted, and the segment's size.
"""

from __future__ import annotations

import numpy as np

from cellfeed.rows.compiled import compiled
from cellfeed.rows.kernels import UINT8, UINT16, WIDE, array_at, copy_into, is_disordered

DROP = np.uint32(0xFFFFFFFF)
"""Entry of a table of genes for a column that is not selected."""

STRIDE = 16
"""Coordinates that are compared together; a row of a Census has about 90 values per tile."""


@compiled(inline="always")
def value_width(values):
    """Return the narrowest ``ValueWidth`` that represents all values exactly."""
    largest = 0
    for value in values:
        if not 0 <= value <= 65535:  # or NaN
            return WIDE
        integer = np.int64(value)
        if integer != value or (value == 0 and np.signbit(value)):
            return WIDE
        largest = max(largest, integer)
    return UINT8 if largest <= 255 else UINT16


@compiled
def narrow_float32(values, bits, target):
    """Copy float32 values to uint16 and return their width, as :func:`value_width` does.

    ``bits`` are the values as int32. If the width is ``WIDE``, ``target`` is undefined. The loop has no branches, so
    that it becomes vector instructions.
    """
    all_bits = np.int32(0)
    sign = np.int32(0)
    inexact = np.int32(0)
    for i in range(len(values)):
        value = values[i]
        integer = np.int32(value if 0 <= value <= 65536 else np.float32(0))  # larger values and NaN have no int32
        target[i] = integer
        all_bits = np.int32(all_bits | integer)
        sign = np.int32(sign | bits[i])  # the sign bit is set for each negative number and for -0.0
        inexact = np.int32(inexact | (np.float32(integer) != value))
    if inexact or sign < 0 or all_bits > 65535:
        return WIDE
    return UINT8 if all_bits <= 255 else UINT16


@compiled(inline="always")
def segment_end(rows, start):
    """Return the end of the segment that begins at ``start`` in an array of row numbers."""
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
def find_run(joinid, runs, k):
    """Return the index of the run that contains ``joinid``, -1 if none does; run ``k`` is tried first."""
    if runs.first[k] <= joinid < runs.stop[k]:
        return k
    low, high = 0, len(runs.first)
    while low < high:  # binary search for the last run that begins at or before joinid
        middle = (low + high) // 2
        if runs.first[middle] <= joinid:
            low = middle + 1
        else:
            high = middle
    low -= 1
    return low if low >= 0 and joinid < runs.stop[low] else -1


@compiled
def find_segments(dim0, start, runs, rows, sizes):
    """Divide a page, from ``start`` on, into segments.

    Parameters
    ----------
    dim0
        int64, shape (n,): row number of each element.
    runs
        The wanted rows: a :class:`~cellfeed.rows.row_builder.RowRuns`.
    rows, sizes
        The segments, filled.

    Returns
    -------
    tuple of int
        The end of the last segment, the number of segments, and how many of them are not wanted. The segments end with
        the page or when ``rows`` is full.
    """
    n, i, k, n_segments, n_unwanted = len(dim0), start, 0, 0, 0
    while i < n and n_segments < len(rows):
        joinid = dim0[i]
        end = segment_end(dim0, i)
        run = find_run(joinid, runs, k)
        if run >= 0:
            k = run
            rows[n_segments] = runs.row[k] + joinid - runs.first[k]
        else:
            rows[n_segments] = -1
            n_unwanted += 1
        sizes[n_segments] = end - i
        n_segments += 1
        i = end
    return i, n_segments, n_unwanted


@compiled
def keep_rows(source, target, rows, sizes):
    """Copy the segments of wanted rows, converted to the type of the target; return their number of elements."""
    low = n_kept = 0
    for k in range(len(rows)):
        size = sizes[k]
        if rows[k] >= 0:
            copy_into(source[low : low + size], target[n_kept : n_kept + size])
            n_kept += size
        low += size
    return n_kept


@compiled
def keep_genes(dim1, data, rows, sizes, places, genes, values):
    """Copy the selected genes of wanted rows; return their number.

    ``sizes`` is reduced to the selected genes. ``places`` is a :class:`~cellfeed.rows.row_builder.GenePlaces`.
    """
    low = n_kept = 0
    n_places = len(places.table)
    for k in range(len(rows)):
        size = sizes[k]
        begin = n_kept
        if rows[k] >= 0:
            for i in range(low, low + size):
                place = dim1[i] - places.base
                if 0 <= place < n_places and places.table[place] != DROP:
                    genes[n_kept] = places.table[place]
                    values[n_kept] = data[i]
                    n_kept += 1
        sizes[k] = n_kept - begin
        low += size
    return n_kept


@compiled
def add_sizes(rows, sizes, row_sizes):
    """Add the sizes of segments to the sizes of their rows: int64, shape (n_rows,)."""
    for k in range(len(rows)):
        if rows[k] >= 0:
            row_sizes[rows[k]] += sizes[k]


@compiled
def scatter_page(page, rows):
    """Append the segments of a page to their rows; return whether the genes of any row are out of order.

    ``page`` is a :class:`~cellfeed.rows.row_builder.Page`, ``rows`` a
    :class:`~cellfeed.rows.row_allocator.RowArrays` whose sizes are counted up.
    """
    genes, values = page.genes, page.values
    low = 0
    disorder = np.uint8(0)
    for k in range(len(page.rows)):
        row, size = page.rows[k], page.sizes[k]
        if row < 0 or size == 0:
            continue
        start = rows.sizes[row]
        rows.sizes[row] = start + size
        row_genes = array_at(rows.genes[row], start + size, rows.gene_type)
        copy_into(genes[low : low + size], row_genes[start:])
        address = rows.values[row] + start * rows.value_type.itemsize
        copy_into(values[low : low + size], array_at(address, size, rows.value_type))
        low += size
        disorder = np.uint8(disorder | is_disordered(row_genes, start))
    return disorder != 0
