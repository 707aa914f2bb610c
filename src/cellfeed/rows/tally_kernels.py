"""Sums of counts per batch and gene.

Compiled by numba on first use and cached on disk, as :mod:`cellfeed.rows.kernels` is.
"""

from __future__ import annotations

import numpy as np

from cellfeed.rows.compiled import compiled


@compiled
def add_counts(batches, indptr, genes, values, n_vars, sums, squares, floor, slots, large):
    """Add the counts of rows in CSR to the sums of their slots, and list the counts above the floors of their slots.

    Parameters
    ----------
    batches
        int64, shape (n_rows,). The slot of a count is ``batch * n_vars + gene``.
    sums, squares, floor
        float64, shape (n_batches * n_vars,): sums of counts and of their squares, and the floors.
    slots, large
        int64 and float64, shape (nnz,): the slots and the counts that are listed.

    Returns
    -------
    The number of counts that are listed.
    """
    n_large = 0
    for k in range(len(batches)):
        first = batches[k] * n_vars
        for i in range(indptr[k], indptr[k + 1]):
            slot, value = first + genes[i], np.float64(values[i])
            sums[slot] += value
            squares[slot] += value * value
            if value > floor[slot]:
                slots[n_large], large[n_large] = slot, value
                n_large += 1
    return n_large
