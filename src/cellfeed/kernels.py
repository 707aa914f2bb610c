"""The inner loops, compiled by numba on first use and cached on disk.

All of them release the GIL. Imported late: numba takes most of a second to import.
"""

from __future__ import annotations

import numpy as np
from numba import njit

DROP = np.uint32(0xFFFFFFFF)
"""In a table of genes: this column of the array is not wanted."""


@njit(nogil=True, cache=True)
def value_range(values):
    """Tell how small a type holds all values exactly: 0 for uint8, 1 for uint16, 2 for neither."""
    largest = 0
    fits = True
    for value in values:
        ok = (value >= 0) & (value <= 65535)  # False for NaN; the cast below is then never of a wild value
        whole = np.int32(value) if ok else np.int32(0)
        fits &= ok & (whole == value)
        largest = max(largest, whole)
    if not fits:
        return 2
    return 0 if largest <= 255 else 1


@njit(nogil=True, cache=True)
def has_negative_zero(values):
    """Tell whether a floating -0.0 is among the values: it equals 0, yet its bits differ."""
    found = False
    for value in values:
        found |= (value == 0) & np.signbit(value)
    return found


@njit(nogil=True, cache=True)
def count_runs(rows):
    """Count the maximal stretches of equal neighbours."""
    n = np.int64(len(rows) > 0)
    for i in range(1, len(rows)):
        n += rows[i] != rows[i - 1]
    return n


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
def stage_page(dim0, dim1, data, first, stop, row0, genes, gene_base, out_genes, out_values, run_row, run_size, sizes):
    """Keep the wanted rows and genes of one page of results, in compact types and in their order.

    ``first``, ``stop``, ``row0`` describe the wanted runs of joinids; ``genes`` maps a column less
    ``gene_base`` to its place among the wanted ones, and is empty where all are wanted. Fills the staged
    arrays and, for each stretch of one row, ``run_row`` and ``run_size``; adds to ``sizes``, the row
    sizes. Returns the number of elements and of stretches kept.
    """
    n, n_kept, n_runs, i, k = len(dim0), 0, 0, 0, 0
    n_genes = len(genes)
    while i < n:
        joinid = dim0[i]
        end = i + 1
        while end < n and dim0[end] == joinid:
            end += 1
        found = _locate(joinid, first, stop, k)
        if found >= 0:
            k = found
            begin = n_kept
            if n_genes == 0:
                for p in range(i, end):
                    out_genes[n_kept + p - i] = dim1[p]
                    out_values[n_kept + p - i] = data[p]
                n_kept += end - i
            else:
                for p in range(i, end):
                    at = dim1[p] - gene_base
                    if 0 <= at < n_genes and genes[at] != DROP:
                        out_genes[n_kept] = genes[at]
                        out_values[n_kept] = data[p]
                        n_kept += 1
            row = row0[k] + joinid - first[k]
            run_row[n_runs] = row
            run_size[n_runs] = n_kept - begin
            sizes[row] += n_kept - begin
            n_runs += 1
        i = end
    return n_kept, n_runs


@njit(nogil=True, cache=True)
def scatter_page(genes, values, run_row, run_size, indptr, fill, out_genes, out_values):
    """Move the staged stretches of one page to their rows; tell whether any row came out of order."""
    p = 0
    disorder = False
    for k in range(len(run_row)):
        row = run_row[k]
        at = fill[row]
        size = run_size[k]
        if size and at > indptr[row]:
            disorder |= out_genes[at - 1] >= genes[p]
        for i in range(size):
            out_genes[at + i] = genes[p + i]
            out_values[at + i] = values[p + i]
        for i in range(1, size):
            disorder |= genes[p + i] <= genes[p + i - 1]
        fill[row] = at + size
        p += size
    return disorder


@njit(nogil=True, cache=True)
def sort_rows(indptr, genes, values):
    """Sort each row by gene, in place; return the first place of a gene that a row holds twice, or -1."""
    for row in range(len(indptr) - 1):
        low, high = indptr[row], indptr[row + 1]
        order = np.argsort(genes[low:high], kind="mergesort")
        genes[low:high] = genes[low:high][order]
        values[low:high] = values[low:high][order]
        for p in range(low + 1, high):
            if genes[p] == genes[p - 1]:
                return p
    return -1


@njit(nogil=True, cache=True)
def gather_dense(indptr, genes, values, rows, targets, out):
    """Write ``rows`` of a block as rows ``targets`` of a dense matrix, zeros included."""
    for k in range(len(rows)):
        row = out[targets[k]]
        row[:] = 0
        for p in range(indptr[rows[k]], indptr[rows[k] + 1]):
            row[genes[p]] = values[p]


@njit(nogil=True, cache=True)
def gather_sizes(indptr, rows, targets, sizes):
    """Write the sizes of ``rows`` of a block at ``targets``."""
    for k in range(len(rows)):
        sizes[targets[k]] = indptr[rows[k] + 1] - indptr[rows[k]]


@njit(nogil=True, cache=True)
def gather_csr(indptr, genes, values, rows, targets, out_indptr, out_genes, out_values):
    """Write ``rows`` of a block as rows ``targets`` of a CSR matrix whose row pointers are known."""
    for k in range(len(rows)):
        at = out_indptr[targets[k]]
        low, high = indptr[rows[k]], indptr[rows[k] + 1]
        for i in range(high - low):
            out_genes[at + i] = genes[low + i]
            out_values[at + i] = values[low + i]
