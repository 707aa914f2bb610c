"""An upper limit of the speed of any reader of a store: decompress all of its tiles with zstd, and nothing else.

    python -m benchmarks.wall census_131k.soma

One thread per core; the packed bytes are in memory before the clock starts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import njit

from cellfeed import ExperimentDataset
from cellfeed.sources.soma.tiles.files import Piece
from cellfeed.sources.soma.tiles.fragments import FIELDS
from cellfeed.sources.soma.tiles.index import FRAGMENTS
from cellfeed.sources.soma.tiles.packed_tiles import CHUNK_BYTES, Decoder
from cellfeed.sources.soma.tiles.unpack_kernels import _word, read_chunk, unpack_address, unpack_chunk
from cellfeed.sources.soma.tiles.zstd import find_zstd


@njit(nogil=True)
def unpack_all(data, starts, stops, codec, decoder):
    """Bytes that the tiles of one file unpack to."""
    total = 0
    for t in range(len(starts)):
        offset = starts[t]
        n_chunks = _word(data, offset)
        offset += 8
        for _ in range(n_chunks):
            chunk = read_chunk(data, offset)
            target, room = decoder.chunk.ctypes.data, len(decoder.chunk)
            total += unpack_chunk(data, chunk, stops[t], codec, decoder, target, room)
            offset = chunk.end
    return total


def seconds(uri: str, n_threads: int) -> tuple[float, int]:
    """Seconds to unpack a store, and its values."""
    selection = ExperimentDataset(uri)._engine.selection
    index = selection.source.open_tiles()
    zstd = find_zstd()
    assert index is not None
    assert zstd is not None
    work = []
    for fragment in index.fragments:
        for field, offsets, codec in zip(FIELDS, fragment.offsets, index.codecs, strict=True):
            name = f"{FRAGMENTS}/{fragment.name}/{field}.tdb"
            data = np.empty(offsets[-1], np.uint8)
            index.files.read([Piece(name, 0, data)])
            for part in np.array_split(np.arange(len(offsets) - 1), 8 * n_threads):
                work.append((data, offsets[part], offsets[part + 1], int(codec)))

    def run(piece: tuple) -> int:
        context = zstd.new_context()
        try:
            return unpack_all(
                *piece, Decoder(unpack_address(), zstd.decompress, context, np.empty(CHUNK_BYTES, np.uint8))
            )
        finally:
            zstd.free_context(context)

    run(work[0])  # compiles
    with ThreadPoolExecutor(n_threads) as pool:
        started = time.perf_counter()
        unpacked = sum(pool.map(run, work))
        took = time.perf_counter() - started
    width = 16 + index.dtype.itemsize
    if unpacked != selection.geometry.nnz * width:
        raise RuntimeError(f"{unpacked} bytes unpacked where {selection.geometry.nnz * width} belong")
    return took, selection.geometry.nnz


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("uri")
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    n_obs = ExperimentDataset(options.uri).shape[0]
    for n_threads in sorted({1, os.cpu_count() or 1}):
        took, n_values = zip(*(seconds(options.uri, n_threads) for _ in range(options.repeat)), strict=True)
        median = statistics.median(took)
        print(
            f"{n_threads} threads: {median * n_threads / n_values[0] * 1e9:.2f} ns a value and core, "
            f"{n_obs / median:,.0f} cells/s ({n_obs / max(took):,.0f}..{n_obs / min(took):,.0f})"
        )


if __name__ == "__main__":
    main()
