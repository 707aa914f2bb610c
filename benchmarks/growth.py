"""How do cells per second depend on the size of a store, and what does a query of a million tiles cost?

    python -m benchmarks.growth folder --out benchmarks/results/growth.jsonl

Writes stores of 32k, 131k and 524k cells with the same nnz per cell into the folder, if they are missing, and one of
131k cells whose capacity is so small that it has a million tiles.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.harness.contenders import Case
from benchmarks.harness.records import append
from benchmarks.harness.run import run_once
from benchmarks.harness.stores import StoreSpec, write_store
from cellfeed import ExperimentDataset
from cellfeed.rows.row_allocator import RowAllocator
from cellfeed.rows.row_builder import GeneTable
from cellfeed.rows.slabs import SLAB_BYTES, Arena, SlabPool
from cellfeed.sources.soma import tiledb_private
from cellfeed.sources.soma.tiles.reader import TileReader
from cellfeed.stats import Meter

NNZ_PER_CELL = 500
SIZES = (32_768, 131_072, 524_288)


def store(folder: Path, **spec: int) -> str:
    uri = folder / ("-".join(f"{k}={v}" for k, v in spec.items()) + ".soma")
    if not uri.exists():
        write_store(str(uri), StoreSpec(nnz_per_cell=NNZ_PER_CELL, **spec))
    return str(uri)


def query_cost(uri: str, repeat: int = 30) -> float:
    """Seconds of a query of one row and the last gene, which decodes at most one tile: the fixed cost of a query."""
    dataset = ExperimentDataset(uri)
    array = dataset._engine.selection.source.X.open(1 << 20)
    rows, n_vars = dataset.shape
    last = np.array([[n_vars - 1, n_vars]])
    tiledb_private.read_pages(array, np.array([[0, 1]]), last, lambda page: None)
    seconds = []
    for k in range(repeat):
        row = k * rows // repeat
        started = time.perf_counter()
        tiledb_private.read_pages(array, np.array([[row, row + 1]]), last, lambda page: None)
        seconds.append(time.perf_counter() - started)
    array.close()
    return statistics.median(seconds)


def read_cost(uri: str, repeat: int = 30) -> float:
    """Seconds to read one row straight from the files."""
    selection = ExperimentDataset(uri)._engine.selection
    tiles = selection.source.open_tiles()
    assert tiles is not None
    genes = GeneTable.from_joinids(selection.var_joinids, selection.geometry.n_columns)
    with contextlib.closing(TileReader(tiles, genes, np.float32, meter=Meter())) as reader:
        space = RowAllocator([Arena(SlabPool(SLAB_BYTES, Meter().hold))], np.zeros(1, np.int64), threading.Lock())
        reader.read(np.array([0]), space)
        seconds = []
        for k in range(repeat):
            started = time.perf_counter()
            reader.read(np.array([k * selection.geometry.n_rows // repeat]), space)
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    uris = {n: store(options.folder, n_obs=n) for n in SIZES}
    rates: dict[int, list[float]] = {n: [] for n in SIZES}
    for _ in range(options.repeat):
        for n, uri in uris.items():
            passes = max(2, SIZES[-1] // n // 2)  # an epoch of a small store ends before caches are warm
            record = run_once(f"{n} cells", "cellfeed", replace(Case(uri), passes=passes), Path())
            assert record is not None
            rates[n].append(statistics.median(p["cells_per_s"] for p in record["passes"][1:]))
            append(options.out, record)
    for n in SIZES:
        print(f"{n:8,} cells: {statistics.median(rates[n]):8,.0f} cells/s ({min(rates[n]):,.0f}..{max(rates[n]):,.0f})")
    for uri in (uris[131_072], store(options.folder, n_obs=131_072, capacity=64)):
        geometry = ExperimentDataset(uri)._engine.selection.geometry
        tiles = geometry.nnz // geometry.capacity
        print(f"{tiles:10,} tiles: {query_cost(uri) * 1e3:.2f} ms a query of almost nothing", end=", ")
        print(f"{read_cost(uri) * 1e3:.2f} ms a row from the files")


if __name__ == "__main__":
    main()
