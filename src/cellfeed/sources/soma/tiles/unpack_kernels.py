"""Kernels that unpack data tiles: zstd and byte planes, with every length checked.

A data tile is a number of chunks (uint64), then the chunks, each of at most 64 KiB when unpacked. The format is
specified in https://github.com/TileDB-Inc/TileDB/blob/main/format_spec/tile.md; all numbers are little-endian uint32:

======================================= ===================================================
chunk                                   unpacked bytes, packed bytes, header bytes, header, packed data
header of filters                       numbers of metadata parts and of data parts; unpacked and packed bytes per part
======================================= ===================================================

A damaged file causes a negative status, never a read outside of the data.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.cpython.unsafe.numbers import viewer
from numba.extending import intrinsic

from cellfeed.rows.compiled import address_of, compiled
from cellfeed.rows.kernels import _UINT8, _UINT16, array_at, call_at, copy_into
from cellfeed.sources.soma.tiles.packed_tiles import DAMAGED, NOT_COUNTS, SECTION_SIZE, Codec, Decoder

PLAIN, ZSTD, SHUFFLED_ZSTD = (int(codec) for codec in Codec)

CHUNK_COUNT_BYTES, CHUNK_HEADER_BYTES = 8, 12
"""Sizes of the number of chunks, and of the header of a chunk."""

PART_COUNTS_BYTES, PART_BYTES = 8, 8
"""Sizes in the header of filters: of the two numbers of parts, and of the pair per part."""

PACKED_SIZE = 4
"""Offset of the packed bytes in the pair of a part."""

_UINT32, _UINT64 = np.empty(0, np.uint32), np.empty(0, np.uint64)
_INT32, _INT64, _FLOAT32 = np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0, np.float32)


class Chunk(NamedTuple):
    """Header of a chunk: offsets in the data of the tile, and the number of unpacked bytes."""

    n_bytes: int
    header: int
    packed: int
    end: int


class Form(NamedTuple):
    """How a field is packed and what becomes of it.

    Attributes
    ----------
    codec
        ``PLAIN``, ``ZSTD`` or ``SHUFFLED_ZSTD``.
    width
        Bytes of a value in the file.
    max_count
        0; or 255 or 65535 if the values are float32 that must be counts up to this number and become uint16.
    """

    codec: int
    width: int
    max_count: int


class Target(NamedTuple):
    """Memory for ``size`` values of ``width`` bytes."""

    address: int
    width: int
    size: int


@intrinsic  # type: ignore[untyped-decorator]
def _word(typing_context: Any, data: Any, offset: Any) -> Any:
    """Return the uint32 at an offset of bytes, aligned or not, as int64."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        view = context.make_array(data)(context, builder, value=arguments[0])
        place = builder.bitcast(builder.gep(view.data, [arguments[1]]), ir.IntType(32).as_pointer())
        return builder.zext(builder.load(place, align=1), ir.IntType(64))

    return types.int64(data, types.int64), generate


@compiled(inline="always")
def read_chunk(data, offset):
    """Return the header of the chunk at an offset; the next chunk begins at its ``end``."""
    header = offset + CHUNK_HEADER_BYTES
    packed = header + _word(data, offset + 8)
    return Chunk(_word(data, offset), header, packed, packed + _word(data, offset + 4))


@compiled(inline="always")
def unpack_chunk(data, chunk, end, codec, decoder, target, room):
    """Unpack a chunk to ``room`` bytes at the address ``target``; return its number of bytes, or ``DAMAGED``."""
    n_bytes, header, packed = chunk.n_bytes, chunk.header, chunk.packed
    if n_bytes > room or chunk.end > end:
        return DAMAGED
    if codec == PLAIN:
        if packed != header or chunk.end - packed != n_bytes:
            return DAMAGED
        copy_into(data[packed : packed + n_bytes], array_at(target, n_bytes, _UINT8))
        return n_bytes
    if packed - header < PART_COUNTS_BYTES + PART_BYTES:
        return DAMAGED
    n_metadata_parts, n_data_parts = _word(data, header), _word(data, header + 4)
    header_bytes = PART_COUNTS_BYTES + PART_BYTES * (n_metadata_parts + 1)
    if n_data_parts != 1 or n_metadata_parts > 1 or packed - header != header_bytes:
        return DAMAGED
    packed_bytes = _word(data, packed - PART_BYTES + PACKED_SIZE)
    if n_metadata_parts == 1:
        packed += _word(data, header + PART_COUNTS_BYTES + PACKED_SIZE)  # the metadata of the byte shuffle come first
    if packed + packed_bytes != chunk.end:
        return DAMAGED
    source = np.int64(data.ctypes.data + packed)
    status = call_at(decoder.decompress, (decoder.context, target, n_bytes, source, packed_bytes))
    return n_bytes if status == n_bytes else DAMAGED


@intrinsic  # type: ignore[untyped-decorator]
def _joined(typing_context: Any, planes: Any, n: Any, i: Any, like: Any) -> Any:
    """Join the bytes of integer ``i`` of ``n``, of the type of ``like``, from their byte planes, lowest first."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        data = context.make_array(planes)(context, builder, value=arguments[0]).data
        integer = ir.IntType(like.dtype.bitwidth)
        joined, place = ir.Constant(integer, 0), arguments[2]
        for shift in range(0, like.dtype.bitwidth, 8):
            byte = builder.zext(builder.load(builder.gep(data, [place])), integer)
            joined = builder.or_(joined, builder.shl(byte, ir.Constant(integer, shift)))
            place = builder.add(place, arguments[1])
        return joined

    return like.dtype(planes, types.int64, types.int64, like), generate


@compiled(inline="always")
def _join(planes, out):
    """Join the byte planes of integers, lowest first; planes beyond the width of ``out`` are ignored."""
    for i in range(len(out)):
        out[i] = _joined(planes, len(out), i, out)


@compiled(inline="always")
def _join_planes(planes, n, width, kept, out):
    """Join planes of ``n`` values to ``kept`` bytes each at an address; return whether any other plane is not 0."""
    if kept == 1:
        _join(planes, array_at(out, n, _UINT8))
    elif kept == 2:
        _join(planes, array_at(out, n, _UINT16))
    elif kept == 4:
        _join(planes, array_at(out, n, _UINT32))
    else:
        _join(planes, array_at(out, n, _UINT64))
    others = planes[kept * n : width * n]
    bits = np.uint8(0)
    for i in range(len(others)):
        bits = np.uint8(bits | others[i])
    return bits != 0


@compiled(inline="always")
def _narrow_integers(values, kept, out):
    """Copy int64 to unsigned integers of ``kept`` bytes at the address ``out``; return whether any is too large."""
    overflow = np.int64(0)
    mask = ~np.int64((1 << (8 * kept)) - 1)
    for i in range(len(values)):
        overflow |= values[i] & mask
    if kept == 2:
        copy_into(values, array_at(out, len(values), _UINT16))
    else:
        copy_into(values, array_at(out, len(values), _UINT32))
    return overflow != 0


@compiled(inline="always")
def _count(value):
    """Return a float32 as int32, 0 if it is no count: negative numbers, large numbers and NaN have no valid int32."""
    return np.int32(value if 0 <= value <= 65536 else np.float32(0))


@compiled(inline="always")
def _counts_of_planes(planes, n, max_count, out):
    """Make uint16 counts of the byte planes of ``n`` float32; return whether any is no count or above ``max_count``."""
    all_bits = wrong = np.int32(0)
    for i in range(n):
        bits = _joined(planes, n, i, _INT32)
        count = _count(viewer(bits, np.float32))
        out[i] = count
        all_bits = np.int32(all_bits | count)
        wrong = np.int32(wrong | (viewer(np.float32(count), np.int32) ^ bits))  # compares bits: -0.0 is no count
    return wrong != 0 or all_bits > max_count


@compiled(inline="always")
def _counts_of_floats(values, max_count, out):
    """Make uint16 counts of float32, as :func:`_counts_of_planes` does."""
    all_bits = wrong = np.int32(0)
    for i in range(len(values)):
        count = _count(values[i])
        out[i] = count
        all_bits = np.int32(all_bits | count)
        wrong = np.int32(wrong | (viewer(np.float32(count), np.int32) ^ viewer(values[i], np.int32)))
    return wrong != 0 or all_bits > max_count


@compiled(inline="always")
def unpack_tile(field, t, width, decoder, wanted, max_count):
    """Unpack tile ``t`` of a field.

    Parameters
    ----------
    field
        A :class:`~cellfeed.sources.soma.tiles.packed_tiles.PackedField`; its ``unpacked`` is filled.
    width
        Bytes of a value in the file. ``unpacked`` may have narrower integers if they represent all values.
    decoder
        A :class:`~cellfeed.sources.soma.tiles.packed_tiles.Decoder`.
    wanted
        bool, shape (n_sections,): sections to unpack; other values are undefined. Empty: all sections.
    max_count
        See :class:`Form`.

    Returns
    -------
    int
        Number of values of the tile; ``DAMAGED``; or ``NOT_COUNTS``.
    """
    out = field.unpacked
    form = Form(np.int64(field.codec), np.int64(width), np.int64(max_count))  # literals would be other types
    target = Target(np.int64(out.ctypes.data), np.int64(out.itemsize), np.int64(len(out)))
    return call_at(decoder.unpack, (field.data, field.places[t, 0], field.places[t, 1], form, decoder, wanted, target))


@compiled(no_cpython_wrapper=True, no_cfunc_wrapper=False)
def _unpack(data, offset, end, form, decoder, wanted, target):
    """Unpack the tile ``data[offset:end]``.

    Addresses and plain integers as arguments let one compiled form serve all types.
    """
    if offset + CHUNK_COUNT_BYTES > end or end > len(data):
        return DAMAGED
    n_chunks = _word(data, offset)
    offset += CHUNK_COUNT_BYTES
    done = 0
    for _ in range(n_chunks):
        if offset + CHUNK_HEADER_BYTES > end:
            return DAMAGED
        chunk = read_chunk(data, offset)
        n = chunk.n_bytes // form.width
        if n <= 0 or n * form.width != chunk.n_bytes or chunk.n_bytes > len(decoder.chunk) or done + n > target.size:
            return DAMAGED
        is_wanted = len(wanted) == 0
        if not is_wanted:
            for section in range(done // SECTION_SIZE, (done + n - 1) // SECTION_SIZE + 1):
                is_wanted |= wanted[section]
        if is_wanted:
            status = _unpack_values(data, chunk, end, n, form, decoder, target, target.address + done * target.width)
            if status < 0:
                return status
        offset = chunk.end
        done += n
    return done if offset == end else DAMAGED


@compiled(no_cpython_wrapper=True)
def _unpack_values(data, chunk, end, n, form, decoder, target, out):
    """Unpack the ``n`` values of a chunk to the address ``out``; return ``DAMAGED``, ``NOT_COUNTS`` or 0.

    This function is not inlined: together with its caller it would take longer to compile.
    """
    in_place = form.codec != SHUFFLED_ZSTD and form.width == target.width
    unpacked = out if in_place else np.int64(decoder.chunk.ctypes.data)  # int64 and uint64 have no common integer type
    if unpack_chunk(data, chunk, end, form.codec, decoder, unpacked, chunk.n_bytes) != chunk.n_bytes:
        return DAMAGED
    if form.max_count:
        counts = array_at(out, n, _UINT16)
        if form.codec == SHUFFLED_ZSTD:
            overflow = _counts_of_planes(decoder.chunk, n, form.max_count, counts)
        else:
            overflow = _counts_of_floats(array_at(unpacked, n, _FLOAT32), form.max_count, counts)
        return NOT_COUNTS if overflow else 0
    overflow = False
    if form.codec == SHUFFLED_ZSTD:
        overflow = _join_planes(decoder.chunk, n, form.width, target.width, out)
    elif not in_place:
        overflow = _narrow_integers(array_at(unpacked, n, _INT64), target.width, out)
    return DAMAGED if overflow else 0


def unpack_address() -> int:
    """Return the address of :func:`_unpack`, which takes longest to compile and is called by several kernels."""
    data, zeros = np.empty(0, np.uint8), (0, 0, 0)
    return address_of(_unpack, data, 0, 0, Form(*zeros), Decoder(*zeros, data), np.empty(0, np.bool_), Target(*zeros))
