"""The inner loops that unpack data tiles: zstd, byte planes, and nothing that trusts what it reads.

A data tile is a count of chunks and then chunks of at most 64 KiB, each ``original length, packed length, header
length, header, packed bytes`` (TileDB's ``format_spec/tile.md``). Every length is checked against the bytes that are
there: a damaged file gives a negative status, never a wild read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from cellfeed.rows.compiled import compiled

PLAIN, ZSTD, SHUFFLED_ZSTD = 0, 1, 2
"""How a column is packed."""

CHUNK_BYTES = 1 << 16
"""Unpacked bytes of a chunk at most."""

PIECE = CHUNK_BYTES // 8
"""Values that are unpacked or stepped over together: a chunk of coordinates."""

DAMAGED = -1
"""Status of a tile whose bytes contradict themselves."""

WIDE = -2
"""Status of values that are no counts, or do not fit the type they were to be unpacked to."""


@intrinsic  # type: ignore[untyped-decorator]
def _decompress(typing_context: Any, address: Any, context: Any, target: Any, room: Any, source: Any, size: Any) -> Any:
    """Call ``ZSTD_decompressDCtx`` at its address: a pointer as a plain number, so that compiled code can be cached."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        word = ir.IntType(64)
        function = ir.FunctionType(word, [word] * 5).as_pointer()
        return builder.call(builder.inttoptr(arguments[0], function), arguments[1:])

    return types.int64(*[types.int64] * 6), generate


@compiled
def _word(data, at):
    """Little-endian uint32 at a place."""
    return (
        np.int64(data[at]) | np.int64(data[at + 1]) << 8 | np.int64(data[at + 2]) << 16 | np.int64(data[at + 3]) << 24
    )


@compiled
def _unpack_chunk(data, at, end, how, address, context, target):
    """Unpack the chunk at ``at`` into bytes ``target``; returns its length, or ``DAMAGED``."""
    original, packed, head = _word(data, at), _word(data, at + 4), _word(data, at + 8)
    begin = at + 12 + head
    if original > len(target) or begin + packed > end:
        return DAMAGED
    if how == PLAIN:
        if head != 0 or packed != original:
            return DAMAGED
        target[:original] = data[begin : begin + original]
        return original
    if head < 16:
        return DAMAGED
    n_heads, n_parts = _word(data, at + 12), _word(data, at + 16)
    if n_parts != 1 or n_heads > 1 or head != 8 + 8 * (n_heads + 1):
        return DAMAGED
    if n_heads == 1:
        begin += _word(data, at + 24)  # the packed header of the byte shuffle comes first
    size = _word(data, at + 12 + head - 4)
    if begin + size != at + 12 + head + packed:
        return DAMAGED
    got = _decompress(address, context, target.ctypes.data, original, data.ctypes.data + begin, size)
    return original if got == original else DAMAGED


@compiled
def _join_planes(planes, n, width, out):
    """Make ``n`` values of their byte planes, lowest first; tell whether a plane that ``out`` has no room for is used.

    Two and four planes are written out: straight lines become vector instructions, as long as no sum is wider than
    what is summed (NumPy's rules would make it int64).
    """
    kept = out.itemsize
    if kept == 2:
        a, b = planes[:n], planes[n : 2 * n]
        for i in range(n):
            out[i] = np.uint16(a[i]) | np.uint16(b[i]) << 8
    elif kept == 4:
        a, b, c, d = planes[:n], planes[n : 2 * n], planes[2 * n : 3 * n], planes[3 * n : 4 * n]
        for i in range(n):
            out[i] = np.uint32(a[i]) | np.uint32(b[i]) << 8 | np.uint32(c[i]) << 16 | np.uint32(d[i]) << 24
    else:
        for i in range(n):
            value = np.uint64(planes[i])
            for k in range(1, kept):
                value |= np.uint64(planes[k * n + i]) << np.uint64(8 * k)
            out[i] = value
    return _any_set(planes[kept * n : width * n])


@compiled
def _any_set(data):
    """Whether any byte is not zero; eight at a time."""
    whole = len(data) // 8 * 8
    words = data[:whole].view(np.uint64)
    spill = np.uint64(0)
    for i in range(len(words)):
        spill |= words[i]
    for i in range(whole, len(data)):
        spill |= np.uint64(data[i])
    return spill != 0


@compiled
def _narrow_plain(values, out):
    """Copy int64 to a smaller unsigned type; tell whether one does not fit."""
    spill = np.int64(0)
    limit = ~np.int64((1 << (8 * out.itemsize)) - 1) if out.itemsize < 8 else np.int64(0)
    for i in range(len(values)):
        spill |= values[i] & limit
        out[i] = values[i]
    return spill != 0


@compiled
def _counts_of_planes(planes, n, out):
    """Make counts of the byte planes of ``n`` float32; tell whether one is no count or does not fit ``out``."""
    a, b, c, d = planes[:n], planes[n : 2 * n], planes[2 * n : 3 * n], planes[3 * n : 4 * n]
    every = wrong = np.int32(0)
    for i in range(n):
        bits = np.int32(np.uint32(a[i]) | np.uint32(b[i]) << 8 | np.uint32(c[i]) << 16 | np.uint32(d[i]) << 24)
        value = bits.view(np.float32)
        whole = np.int32(value if 0 <= value <= 65536 else np.float32(0))  # a wild value has no int32, nor has NaN
        out[i] = whole
        every = np.int32(every | whole)
        wrong = np.int32(wrong | (np.float32(whole).view(np.int32) ^ bits))  # bit by bit: -0.0 is no count
    return wrong != 0 or every > (1 << (8 * out.itemsize)) - 1


@compiled
def _counts_of_floats(values, out):
    """Do the same for float32 that were not shuffled."""
    bits = values.view(np.int32)
    every = wrong = np.int32(0)
    for i in range(len(values)):
        value = values[i]
        whole = np.int32(value if 0 <= value <= 65536 else np.float32(0))
        out[i] = whole
        every = np.int32(every | whole)
        wrong = np.int32(wrong | (np.float32(whole).view(np.int32) ^ bits[i]))
    return wrong != 0 or every > (1 << (8 * out.itemsize)) - 1


@compiled
def unpack_counts(data, at, end, how, zstd, scratch, wanted, out):
    """Unpack a column of float32 as counts of uint8 or uint16; otherwise as :func:`unpack_tile`.

    Returns
    -------
    int
        Values in the tile, ``DAMAGED``, or ``WIDE`` where one is no count or too large for ``out``.
    """
    if at + 8 > end or end > len(data):
        return DAMAGED
    n_chunks = _word(data, at)
    at += 8
    done = 0
    for _ in range(n_chunks):
        n = _chunk_values(data, at, end, 4)
        if n <= 0 or done + n > len(out):
            return DAMAGED
        if _is_wanted(wanted, done, n):
            if _unpack_chunk(data, at, end, how, zstd[0], zstd[1], scratch) != n * 4:
                return DAMAGED
            to = out[done : done + n]
            if how == SHUFFLED_ZSTD:
                spill = _counts_of_planes(scratch, n, to)
            else:
                spill = _counts_of_floats(scratch[: n * 4].view(np.float32), to)
            if spill:
                return WIDE
        at += 12 + _word(data, at + 8) + _word(data, at + 4)
        done += n
    return done if at == end else DAMAGED


@compiled
def _chunk_values(data, at, end, width):
    """Values of ``width`` bytes in the chunk at ``at``; 0 if it cannot be."""
    if at + 12 > end:
        return 0
    n = _word(data, at) // width
    return n if n * width == _word(data, at) else 0


@compiled
def _is_wanted(wanted, start, n):
    """Whether any piece with values ``start`` to ``start + n`` is wanted; without pieces, all are."""
    if len(wanted) == 0:
        return True
    return wanted[start // PIECE : (start + n - 1) // PIECE + 1].any()


@compiled
def unpack_tile(data, at, end, how, width, zstd, scratch, wanted, out):
    """Unpack the column of a tile that lies at ``data[at:end]``.

    Parameters
    ----------
    data
        uint8: packed bytes, as they lie in the file.
    how
        ``PLAIN``, ``ZSTD`` or ``SHUFFLED_ZSTD``.
    width
        Bytes of a value in the file; ``out`` may hold narrower ones, if all of them fit.
    zstd
        Address of ``ZSTD_decompressDCtx``, and a context.
    scratch
        uint8, ``CHUNK_BYTES`` long.
    wanted
        bool: whether piece ``k`` of ``PIECE`` values is needed; chunks of which no piece is
        wanted are stepped over. Empty: all are.
    out
        Unsigned integers, room for a whole tile.

    Returns
    -------
    int
        Values in the tile, or ``DAMAGED``.
    """
    if at + 8 > end or end > len(data):
        return DAMAGED
    n_chunks = _word(data, at)
    at += 8
    done = 0
    for _ in range(n_chunks):
        n = _chunk_values(data, at, end, width)
        if n <= 0 or done + n > len(out):
            return DAMAGED
        if _is_wanted(wanted, done, n):
            to = out[done : done + n]
            in_place = how != SHUFFLED_ZSTD and width == out.itemsize
            target = to.view(np.uint8) if in_place else scratch
            if _unpack_chunk(data, at, end, how, zstd[0], zstd[1], target) != n * width:
                return DAMAGED
            spill = False
            if how == SHUFFLED_ZSTD:
                spill = _join_planes(scratch, n, width, to)
            elif not in_place:
                spill = _narrow_plain(scratch[: n * width].view(np.int64), to)
            if spill:
                return DAMAGED
        at += 12 + _word(data, at + 8) + _word(data, at + 4)
        done += n
    return done if at == end else DAMAGED
