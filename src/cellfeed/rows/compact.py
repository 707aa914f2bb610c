"""Rows of a minibatch in one block of bytes, which crosses to a device in one copy and becomes X there.

A nonzero takes 2 bytes for its column, if there are at most 65,536 genes, and 1 or 2 for a count: a dense float32
minibatch of a Census has twenty times the bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from cellfeed.rows.assemble import Scaling
from cellfeed.rows.cell_rows import CellRows, ValueWidth

ALIGNMENT = 16
"""Bytes: each array of a block begins at a multiple of it."""

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""An integer type of each size: PyTorch scatters few unsigned types, and bits of any type as such integers."""


class CompactLayout(NamedTuple):
    """Where the arrays of some rows lie in a block of bytes.

    Attributes
    ----------
    n_rows, nnz
        Number of rows, and of values in all rows.
    dtypes
        Types of the row offsets, columns and values. Values have the widest type that one of the rows has in the pool.
    value_dtype
        Type of the values as a tensor: that of X if they are not small counts.

    Examples
    --------
    >>> layout = CompactLayout(2, 5, (np.dtype("int32"), np.dtype("uint16"), np.dtype("uint8")), torch.uint8)
    >>> list(layout.parts()), layout.n_bytes
    ([slice(0, 12, None), slice(16, 26, None), slice(32, 37, None)], 37)
    """

    n_rows: int
    nnz: int
    dtypes: tuple[np.dtype[Any], np.dtype[Any], np.dtype[Any]]
    value_dtype: torch.dtype

    @classmethod
    def of(cls, rows: CellRows, array_dtype: np.dtype[Any], tensor_dtype: torch.dtype) -> CompactLayout:
        """Return the layout of rows whose wide values are of the type of X, as an array and as a tensor."""
        nnz = int(rows.sizes.sum())
        offset_dtype = np.dtype(np.int32 if nnz < 2**31 else np.int64)
        column_dtype = np.dtype(np.uint16 if rows.gene_dtype == np.uint16 else np.int32)
        width = ValueWidth(rows.widths.max(initial=ValueWidth.UINT8))
        if width < ValueWidth.WIDE:
            array_dtype = np.dtype(width.name.lower())
            tensor_dtype = getattr(torch, array_dtype.name)
        return cls(len(rows), nnz, (offset_dtype, column_dtype, array_dtype), tensor_dtype)

    def parts(self) -> Iterator[slice]:
        """Yield the bytes of the row offsets, of the columns and of the values."""
        start = 0
        for dtype, size in zip(self.dtypes, (self.n_rows + 1, self.nnz, self.nnz), strict=True):
            yield slice(start, start + size * dtype.itemsize)
            start += -(-size * dtype.itemsize // ALIGNMENT) * ALIGNMENT

    @property
    def n_bytes(self) -> int:
        """Bytes of the block."""
        *_, values = self.parts()
        return int(values.stop)

    def arrays(self, block: torch.Tensor) -> list[Any]:
        """Return the three arrays in a block of the memory of the CPU: uint8, shape (n_bytes,)."""
        memory = block.numpy()
        return [memory[part].view(dtype) for part, dtype in zip(self.parts(), self.dtypes, strict=True)]

    def rows(self, block: torch.Tensor) -> CompactRows:
        """Return the rows in a block on any device."""
        offsets, columns, values = (block[part] for part in self.parts())
        return CompactRows(
            offsets.view(getattr(torch, self.dtypes[0].name)),
            columns.view(getattr(torch, self.dtypes[1].name)),
            values.view(self.value_dtype),
        )


@dataclass(frozen=True, eq=False)
class CompactRows:
    """Rows as tensors on one device. No method waits for the device.

    Attributes
    ----------
    offsets
        int32 or int64, shape (n_rows + 1,): start of each row.
    columns, values
        shape (nnz,).
    """

    offsets: torch.Tensor
    columns: torch.Tensor
    values: torch.Tensor

    @cached_property
    def _lengths(self) -> torch.Tensor:
        """int64, shape (n_rows,): nnz of each row."""
        return self.offsets.long().diff()

    @cached_property
    def _row_of(self) -> torch.Tensor:
        """int64, shape (nnz,): the row of each value."""
        return torch.repeat_interleave(self._lengths, output_size=len(self.values))

    def scaled(self, scaling: Scaling) -> CompactRows:
        """Return the rows with values of float32, scaled as :mod:`cellfeed.rows.scaling_kernels` does it.

        Values are computed in float64 and rounded once.
        """
        values = self.values.double()
        if scaling.target:
            totals = torch.segment_reduce(values, "sum", lengths=self._lengths, unsafe=True)
            factors = torch.where(totals == 0, 1.0, scaling.target / totals)
            values = values * factors[self._row_of]
        if scaling.log:
            values = values.log1p()
        return replace(self, values=values.to(torch.float32))

    def dense(self, n_vars: int, dtype: torch.dtype) -> torch.Tensor:
        """Return a new dense tensor, shape (n_rows, n_vars)."""
        shape, bits = (len(self.offsets) - 1, n_vars), _BITS[dtype.itemsize]
        out = torch.zeros(shape, dtype=bits, device=self.values.device)
        places = (self._row_of * n_vars).add_(self.columns.to(torch.int32))  # (nnz,)
        out.view(-1).scatter_(0, places, self.values.to(dtype).view(bits))
        return out.view(dtype)

    def csr(self, n_vars: int, dtype: torch.dtype) -> torch.Tensor:
        """Return a CSR tensor, shape (n_rows, n_vars), with indices of the type of the offsets."""
        return torch.sparse_csr_tensor(
            self.offsets,
            self.columns.to(self.offsets.dtype),
            self.values.to(dtype),
            size=(len(self.offsets) - 1, n_vars),
            device=self.values.device,
            check_invariants=False,  # canonical by construction, and tested
        )
