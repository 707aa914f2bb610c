"""Library size and logarithm, done to the values of a row while they are copied to a minibatch: one pass, no zeros.

Compiled by numba on first use and cached on disk, as :mod:`cellfeed.rows.kernels` is.
"""

from __future__ import annotations

import numpy as np

from cellfeed.rows.compiled import compiled
from cellfeed.rows.kernels import _UINT8, _UINT16, _put_dense, array_at, borrowed, copy_into


@compiled
def gather_dense(genes, values, sizes, widths, gene_type, value_type, target, log, out):
    """Do as :func:`cellfeed.rows.kernels.gather_dense` does, with values scaled: to a total of ``target`` if not 0."""
    out = borrowed(out)
    scaled = np.empty(sizes.max(), out.dtype)
    for k in range(len(sizes)):
        row, size = out[k], sizes[k]
        row[:] = 0
        _scale(values[k], widths[k], value_type, target, log, scaled[:size])
        _put_dense(array_at(genes[k], size, gene_type), scaled[:size], row)


@compiled
def gather_csr(genes, values, sizes, widths, gene_type, value_type, indptr, target, log, out_genes, out_values):
    """Do as :func:`cellfeed.rows.kernels.gather_csr` does, with values scaled."""
    out_genes, out_values = borrowed(out_genes), borrowed(out_values)
    for k in range(len(sizes)):
        at, size = indptr[k], sizes[k]
        copy_into(array_at(genes[k], size, gene_type), out_genes[at : at + size])
        _scale(values[k], widths[k], value_type, target, log, out_values[at : at + size])


@compiled
def _scale(address, width, value_type, target, log, scaled):
    """Write the values of one row, scaled."""
    if width == 1:
        _scale_counts(array_at(address, len(scaled), _UINT8), target, log, scaled)
    elif width == 2:
        _scale_counts(array_at(address, len(scaled), _UINT16), target, log, scaled)
    else:
        values = array_at(address, len(scaled), value_type)
        factor = _factor(values, target)
        for i in range(len(values)):
            scaled[i] = _scaled(values[i], factor, log)


@compiled
def _scale_counts(counts, target, log, scaled):
    """Scale counts, few of which differ: small ones are computed when they are met first, and looked up again."""
    factor = _factor(counts, target)
    known = np.full(256, np.float32(-1))
    for i in range(len(counts)):
        count = counts[i]
        if count > 255:
            scaled[i] = _scaled(count, factor, log)
            continue
        if known[count] < 0:
            known[count] = _scaled(count, factor, log)
        scaled[i] = known[count]


@compiled
def _scaled(value, factor, log):
    x = value * factor
    # In double precision this is as exact as log1p is in single, and takes half the time; not so close to 0.
    return np.log(1.0 + x) if log and abs(x) > 1e-8 else x


@compiled(fastmath={"reassoc"})
def _factor(values, target):
    """Return what brings a row to its total; 1 for a row without values, or without a target."""
    total = 0
    if target != 0:
        for i in range(len(values)):
            total += values[i]
    return target / total if total != 0 else 1.0
