"""Rows in memory for tests, as a reader would return them."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from cellfeed.rows.cell_rows import CellRows, ValueWidth


def cell_rows(X: sp.csr_matrix, *, first: int = 0) -> CellRows:
    """The rows of ``X``, each in the narrowest type for its values; their positions begin at ``first``."""
    genes = X.indices.astype(np.uint16 if X.shape[1] <= 1 << 16 else np.uint32)
    values, widths = [], []
    for low, high in zip(X.indptr, X.indptr[1:], strict=False):
        dtype = narrowest(X.data[low:high])
        values.append(X.data[low:high].astype(dtype))
        widths.append(ValueWidth.of(dtype))
    return CellRows(
        positions=np.arange(first, first + X.shape[0]),
        is_real=np.ones(X.shape[0], np.bool_),
        genes=genes.ctypes.data + X.indptr[:-1].astype(np.int64) * genes.itemsize,
        values=np.array([row.ctypes.data for row in values], np.int64),
        sizes=np.diff(X.indptr).astype(np.int64),
        widths=np.array(widths, np.uint8),
        gene_dtype=genes.dtype,
        value_dtype=X.dtype,
        owners=(genes, *values),
    )


def narrowest(values: np.ndarray) -> np.dtype:
    """The type of the values, or the narrower type of counts that represents them to the bit."""
    with np.errstate(invalid="ignore"):
        for dtype in (np.uint8, np.uint16):
            if values.astype(dtype).astype(values.dtype).tobytes() == values.tobytes():
                return np.dtype(dtype)
    return values.dtype
