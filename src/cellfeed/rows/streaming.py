"""Rows of dense minibatches and of tokens, written past the caches; see :mod:`cellfeed.rows.kernels`.

A dense minibatch is far larger than the caches. An ordinary store loads each line of the target from memory before it
is overwritten; a streaming store of a whole line does not, and takes less than half of the time. The values of a part
of a row are put in a tile of zeros, which stays in the cache of the core, and the lines of the tile are streamed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from cellfeed.rows.compiled import compiled

LINE_BYTES = 64

TILE_SIZE = 4096
"""Columns of a tile."""


@intrinsic  # type: ignore[untyped-decorator]
def _stream_line(typing_context: Any, source: Any, target: Any) -> Any:
    """Copy 64 bytes to an address that is a multiple of 64."""

    def generate(context: Any, builder: Any, _signature: Any, addresses: Any) -> Any:
        pointer = ir.VectorType(ir.IntType(32), LINE_BYTES // 4).as_pointer()
        line = builder.load(builder.inttoptr(addresses[0], pointer), align=1)
        store = builder.store(line, builder.inttoptr(addresses[1], pointer), align=LINE_BYTES)
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def finish_streams(typing_context: Any) -> Any:
    """Order the streaming stores of this thread before its later stores; call it before other threads read."""

    def generate(context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@compiled(inline="always")
def stream(source, target):
    """Copy values of the same type; whole lines of the target are not loaded."""
    itemsize, begin = target.itemsize, np.int64(target.ctypes.data)
    low = min(-begin % LINE_BYTES // itemsize, len(target))  # the first whole line
    high = low + (len(target) - low) // (LINE_BYTES // itemsize) * (LINE_BYTES // itemsize)
    for i in range(low):
        target[i] = source[i]
    for i in range(low * itemsize, high * itemsize, LINE_BYTES):
        _stream_line(np.int64(source.ctypes.data) + i, begin + i)
    for i in range(high, len(target)):
        target[i] = source[i]


@compiled(inline="always")
def stream_dense(genes, values, dense, zeros):
    """Write a row, of which the genes ascend, to its columns, and zeros to all others.

    ``zeros``, of the type of ``dense``, is a tile of zeros, which it is again afterwards. Tiles begin where lines do.
    """
    i = 0
    shift = np.int64(dense.ctypes.data) // dense.itemsize % (LINE_BYTES // dense.itemsize)
    for low in range(-shift, len(dense), TILE_SIZE):
        begin, end, first = max(low, 0), min(low + TILE_SIZE, len(dense)), i
        while i < len(genes) and genes[i] < end:
            zeros[np.uint64(genes[i] - low)] = values[i]  # unsigned: no check of negative indices
            i += 1
        stream(zeros[begin - low : end - low], dense[begin:end])
        for j in range(first, i):
            zeros[np.uint64(genes[j] - low)] = 0
