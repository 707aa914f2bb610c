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
from numba.cpython.unsafe.numbers import viewer
from numba.extending import intrinsic

from cellfeed.rows.compiled import compiled
from cellfeed.rows.kernels import _UINT8, _UINT16, array_at, copy_into

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

_UINT32, _UINT64, _INT64, _FLOAT32 = (np.empty(0, dtype) for dtype in (np.uint32, np.uint64, np.int64, np.float32))


@intrinsic  # type: ignore[untyped-decorator]
def _decompress(typing_context: Any, address: Any, context: Any, target: Any, room: Any, source: Any, size: Any) -> Any:
    """Call ``ZSTD_decompressDCtx`` at its address: a pointer as a plain number, so that compiled code can be cached."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        word = ir.IntType(64)
        function = ir.FunctionType(word, [word] * 5).as_pointer()
        return builder.call(builder.inttoptr(arguments[0], function), arguments[1:])

    return types.int64(*[types.int64] * 6), generate


@intrinsic  # type: ignore[untyped-decorator]
def _word(typing_context: Any, data: Any, at: Any) -> Any:
    """Return the uint32 that begins at a place of some bytes, aligned or not."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        view = context.make_array(data)(context, builder, value=arguments[0])
        place = builder.bitcast(builder.gep(view.data, [arguments[1]]), ir.IntType(32).as_pointer())
        return builder.zext(builder.load(place, align=1), ir.IntType(64))

    return types.int64(data, types.int64), generate


@compiled(inline="always")
def _unpack_chunk(data, at, end, how, address, context, target, room):
    """Unpack the chunk at ``at`` to ``room`` bytes at the address ``target``; returns its length, or ``DAMAGED``."""
    original, packed, head = _word(data, at), _word(data, at + 4), _word(data, at + 8)
    begin = at + 12 + head
    if original > room or begin + packed > end:
        return DAMAGED
    if how == PLAIN:
        if head != 0 or packed != original:
            return DAMAGED
        copy_into(data[begin : begin + original], array_at(target, original, _UINT8))
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
    got = _decompress(address, context, target, original, data.ctypes.data + begin, size)
    return original if got == original else DAMAGED


@compiled(inline="always")
def _join_planes(planes, n, width, kept, out):
    """Make ``n`` values of ``kept`` bytes of their byte planes, lowest first; whether a plane beyond those is used.

    Two and four planes are written out: straight lines become vector instructions, as long as no sum is wider than
    what is summed (NumPy's rules would make it int64).
    """
    if kept == 1:
        copy_into(planes[:n], array_at(out, n, _UINT8))
    elif kept == 2:
        a, b, two = planes[:n], planes[n : 2 * n], array_at(out, n, _UINT16)
        for i in range(n):
            two[i] = np.uint16(a[i]) | np.uint16(b[i]) << 8
    elif kept == 4:
        a, b, c, d = planes[:n], planes[n : 2 * n], planes[2 * n : 3 * n], planes[3 * n : 4 * n]
        four = array_at(out, n, _UINT32)
        for i in range(n):
            four[i] = np.uint32(a[i]) | np.uint32(b[i]) << 8 | np.uint32(c[i]) << 16 | np.uint32(d[i]) << 24
    else:
        eight = array_at(out, n, _UINT64)
        for i in range(n):
            value = np.uint64(planes[i])
            for k in range(1, 8):
                value |= np.uint64(planes[k * n + i]) << np.uint64(8 * k)
            eight[i] = value
    beyond = planes[kept * n : width * n]
    words = array_at(beyond.ctypes.data, len(beyond) // 8, _UINT64)
    spill = np.uint64(0)
    for i in range(len(words)):
        spill |= words[i]
    for i in range(8 * len(words), len(beyond)):
        spill |= np.uint64(beyond[i])
    return spill != 0


@compiled(inline="always")
def _narrow_plain(values, kept, out):
    """Copy int64 to unsigned integers of ``kept`` bytes; tell whether one does not fit."""
    spill = np.int64(0)
    limit = ~np.int64((1 << (8 * kept)) - 1)
    for i in range(len(values)):
        spill |= values[i] & limit
    if kept == 2:
        copy_into(values, array_at(out, len(values), _UINT16))
    else:
        copy_into(values, array_at(out, len(values), _UINT32))
    return spill != 0


@compiled(inline="always")
def _counts_of_planes(planes, n, most, out):
    """Make uint16 counts of the byte planes of ``n`` float32; whether one is no count, or above 255 or 65535."""
    a, b, c, d = planes[:n], planes[n : 2 * n], planes[2 * n : 3 * n], planes[3 * n : 4 * n]
    every = wrong = np.int32(0)
    for i in range(n):
        bits = np.int32(np.uint32(a[i]) | np.uint32(b[i]) << 8 | np.uint32(c[i]) << 16 | np.uint32(d[i]) << 24)
        value = viewer(bits, np.float32)
        whole = np.int32(value if 0 <= value <= 65536 else np.float32(0))  # a wild value has no int32, nor has NaN
        out[i] = whole
        every = np.int32(every | whole)
        wrong = np.int32(wrong | (viewer(np.float32(whole), np.int32) ^ bits))  # bit by bit: -0.0 is no count
    return wrong != 0 or every > most


@compiled(inline="always")
def _counts_of_floats(values, most, out):
    """Do the same for float32 that were not shuffled."""
    every = wrong = np.int32(0)
    for i in range(len(values)):
        value = values[i]
        whole = np.int32(value if 0 <= value <= 65536 else np.float32(0))
        out[i] = whole
        every = np.int32(every | whole)
        wrong = np.int32(wrong | (viewer(np.float32(whole), np.int32) ^ viewer(value, np.int32)))
    return wrong != 0 or every > most


@compiled(inline="always")
def unpack_tile(data, place, how, width, zstd, scratch, wanted, out, most):
    """Unpack the column of a tile.

    Parameters
    ----------
    data, place
        uint8: packed bytes, as they lie in the file; where the tile begins and ends.
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
        Room for a whole tile.
    most
        0; or 255 or 65535 if the values are float32 and ``out``, uint16, takes them as counts up to that.

    Returns
    -------
    int
        Values in the tile, ``DAMAGED``, or ``WIDE`` if one is no count or is larger than ``most``.
    """
    to, kept = out.ctypes.data, np.int64(out.itemsize)
    return _unpack(
        data, place[0], place[1], how, np.int64(width), zstd, scratch, wanted, to, kept, len(out), np.int64(most)
    )


@compiled
def _unpack(data, at, end, how, width, zstd, scratch, wanted, out, kept, room, most):
    """Unpack ``data[at:end]`` to ``room`` values of ``kept`` bytes at the address ``out``.

    This takes longest to compile: addresses and plain integers let one function serve all types. Literal numbers have
    types of their own.
    """
    if at + 8 > end or end > len(data):
        return DAMAGED
    n_chunks = _word(data, at)
    at += 8
    done = 0
    for _ in range(n_chunks):
        if at + 12 > end:
            return DAMAGED
        n_bytes = _word(data, at)
        n = n_bytes // width
        if n <= 0 or n * width != n_bytes or n_bytes > len(scratch) or done + n > room:
            return DAMAGED
        needed = len(wanted) == 0
        if not needed:
            for piece in range(done // PIECE, (done + n - 1) // PIECE + 1):
                needed |= wanted[piece]
        if needed:
            to = out + done * kept
            in_place = how != SHUFFLED_ZSTD and width == kept
            target = to if in_place else scratch.ctypes.data
            if _unpack_chunk(data, at, end, how, zstd[0], zstd[1], target, n_bytes) != n_bytes:
                return DAMAGED
            if most:
                counts = array_at(to, n, _UINT16)
                if how == SHUFFLED_ZSTD:
                    spill = _counts_of_planes(scratch, n, most, counts)
                else:
                    spill = _counts_of_floats(array_at(target, n, _FLOAT32), most, counts)
                if spill:
                    return WIDE
            elif how == SHUFFLED_ZSTD:
                if _join_planes(scratch, n, width, kept, to):
                    return DAMAGED
            elif not in_place and _narrow_plain(array_at(target, n, _INT64), kept, to):
                return DAMAGED
        at += 12 + _word(data, at + 8) + _word(data, at + 4)
        done += n
    return done if at == end else DAMAGED
