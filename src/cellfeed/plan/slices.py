"""The slices of a chunk: how many of its cells each of several windows yields."""

from __future__ import annotations

import numpy as np

from cellfeed._joinids import IntArray

PHASE_BITS = 20
"""Phases are integers below ``1 << PHASE_BITS``. They shift the slices of each chunk, so that small chunks do not all
yield their cells in the same windows."""


def slice_of(place: IntArray, size: IntArray, n_slices: IntArray, phase: IntArray) -> IntArray:
    """Return the slice of each cell: ``floor((place + f) * n_slices / size)``, where ``f`` is the phase in [0, 1).

    ``place`` counts the cells of a chunk in random order; ``size`` is the number of cells of the chunk. All arrays
    have shape (n_cells,).

    Examples
    --------
    10 cells in 4 slices, with a phase of 1/2:

    >>> slice_of(np.arange(10), 10, 4, 1 << (PHASE_BITS - 1)).tolist()
    [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    """
    return ((place << PHASE_BITS) + phase) * n_slices // (size << PHASE_BITS)


def cells_before_slice(k: IntArray, size: IntArray, n_slices: IntArray, phase: IntArray) -> IntArray:
    """Return the number of cells in slices 0 to ``k - 1``: the first place that :func:`slice_of` puts in slice ``k``.

    It is ``ceil(k * size / n_slices - f)``, between 0 and ``size``. All arrays have shape (n_chunks,).

    Examples
    --------
    >>> cells_before_slice(np.arange(5), 10, 4, 1 << (PHASE_BITS - 1)).tolist()
    [0, 2, 5, 7, 10]
    """
    shift = phase * n_slices - k * (size << PHASE_BITS)
    n_cells = np.clip(-(shift // (n_slices << PHASE_BITS)), 0, size)
    return np.where(k <= 0, 0, np.where(k < n_slices, n_cells, size))
