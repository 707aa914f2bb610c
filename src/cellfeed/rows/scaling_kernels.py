"""Gathering of rows with values that are scaled: library size and logarithm in one loop, over nonzeros only.

Compiled by numba on first use and cached on disk, as :mod:`cellfeed.rows.kernels` is.
"""

from __future__ import annotations

import numpy as np

from cellfeed.rows.compiled import compiled
from cellfeed.rows.kernels import _UINT8, _UINT16, UINT8, UINT16, array_at, copy_into
from cellfeed.rows.streaming import TILE_SIZE, finish_streams, stream_dense


@compiled(allocates=True)
def gather_dense_scaled(rows, widths, scaling, out):
    """Write rows to a dense matrix, as :func:`cellfeed.rows.kernels.gather_dense` does, with values scaled."""
    scaled, zeros = np.empty(rows.sizes.max(), out.dtype), np.zeros(TILE_SIZE, out.dtype)
    for k in range(len(rows.sizes)):
        size = rows.sizes[k]
        _scale(rows.values[k], widths[k], rows.value_type, scaling, scaled[:size])
        stream_dense(array_at(rows.genes[k], size, rows.gene_type), scaled[:size], out[k], zeros)
    finish_streams()


@compiled
def gather_csr_scaled(rows, widths, scaling, csr):
    """Write rows to a CSR matrix, as :func:`cellfeed.rows.kernels.gather_csr` does, with values scaled."""
    out_genes, out_values = csr.genes, csr.values
    for k in range(len(rows.sizes)):
        low, size = csr.indptr[k], rows.sizes[k]
        copy_into(array_at(rows.genes[k], size, rows.gene_type), out_genes[low : low + size])
        _scale(rows.values[k], widths[k], rows.value_type, scaling, out_values[low : low + size])


@compiled(no_cpython_wrapper=True)
def _scale(address, width, value_type, scaling, out):
    """Write the scaled values of the row at an address."""
    if width == UINT8:
        _scale_counts(array_at(address, len(out), _UINT8), scaling, out)
    elif width == UINT16:
        _scale_counts(array_at(address, len(out), _UINT16), scaling, out)
    else:
        values = array_at(address, len(out), value_type)
        factor = _factor(values, scaling.target)
        for i in range(len(values)):
            out[i] = _scale_value(values[i], factor, scaling.log)


@compiled(allocates=True, no_cpython_wrapper=True)
def _scale_counts(counts, scaling, out):
    """Write scaled counts; each count below 256 is computed once per row and then looked up."""
    factor = _factor(counts, scaling.target)
    known = np.full(256, np.float32(-1))
    for i in range(len(counts)):
        count = counts[i]
        if count > 255:
            out[i] = _scale_value(count, factor, scaling.log)
            continue
        if known[count] < 0:
            known[count] = _scale_value(count, factor, scaling.log)
        out[i] = known[count]


@compiled(no_cpython_wrapper=True)
def _scale_value(value, factor, log):
    x = value * factor
    # log(1 + x) in double precision is as exact as log1p in single precision, in half the time; not so close to 0.
    return np.log(1.0 + x) if log and abs(x) > 1e-8 else x


@compiled(fastmath={"reassoc"}, no_cpython_wrapper=True)
def _factor(values, target):
    """Return the factor that scales a row to a total of ``target``; 1 if ``target`` or the row's total is 0."""
    total = 0
    if target != 0:
        for i in range(len(values)):
            total += values[i]
    return target / total if total != 0 else 1.0
