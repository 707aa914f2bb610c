"""Write the stores that the benchmarks read: seeded, Census-like, and as tiledbsoma writes by default.

    python -m benchmarks.harness.stores census_131k.soma --n-obs 131072
    python -m benchmarks.harness.stores default_32k.soma --n-obs 32768 --layout default

The speed of a loader depends on the places of the bytes, so the ``census`` layout repeats the
geometry of X in the CZ CELLxGENE Census (its builder's ``globals.py``): one fragment in global order,
2,048 x 2,048 space tiles, 65,536 cells a data tile, duplicates allowed, zstd 9, ByteShuffle on the genes
and the values. Data sets lie one after another and differ in depth; nearly all expression lies in the
first 35,000 genes. A cell is a multinomial draw of its molecules over the genes of its data set.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np
import pandas as pd
import pyarrow as pa
import tiledbsoma as soma
from numba import njit
from tiledbsoma import pytiledbsoma as clib

from benchmarks.harness.census_obs import obs_table

TILE = 2048
"""Rows, and genes, of a space tile of the Census."""

ZSTD = {"_type": "ZstdFilter", "level": 9}
CENSUS_X = {
    "tiledb": {
        "create": {
            "capacity": 2**16,
            "dims": {
                "soma_dim_0": {"tile": TILE, "filters": [ZSTD]},
                "soma_dim_1": {"tile": TILE, "filters": ["ByteShuffleFilter", ZSTD]},
            },
            "attrs": {"soma_data": {"filters": ["ByteShuffleFilter", ZSTD]}},
            "cell_order": "row-major",
            "tile_order": "row-major",
            "allows_duplicates": True,
        }
    }
}


@dataclass(frozen=True)
class StoreSpec:
    """One store: its size, its depth, its layout and its seed."""

    n_obs: int = 131_072
    n_vars: int = 60_530
    nnz_per_cell: int = 2_657
    n_expressed: int = 35_000
    n_datasets: int = 24
    layout: str = "census"  # or "default": the layout that tiledbsoma writes by default
    capacity: int | None = None
    tile: int = TILE  # rows, and genes, of a space tile; of the census layout
    seed: int = 0


def write_store(uri: str, spec: StoreSpec) -> None:
    """Write one experiment: obs with Census columns, var, and X["raw"] in a single fragment."""
    rng = np.random.default_rng(spec.seed)
    dataset = np.sort(rng.integers(0, spec.n_datasets, spec.n_obs))
    # Depth differs between data sets (0.3 to 2.4 fold) and, log-normally with a mean of 1, between cells.
    scale = rng.uniform(0.3, 2.4, spec.n_datasets)
    depth = spec.nnz_per_cell * (scale / scale[dataset].mean())[dataset] * rng.lognormal(-0.08, 0.4, spec.n_obs)
    popularity = _gene_popularity(rng, spec)
    write_cells(uri, spec, depth, dataset, popularity, lambda sums: obs_table(rng, dataset, spec.n_vars, sums))


def write_cells(
    uri: str,
    spec: StoreSpec,
    depth: np.ndarray,
    kind: np.ndarray,
    popularity: np.ndarray,
    obs: Callable[[dict[str, np.ndarray]], pa.Table],
) -> None:
    """Write cells with randomly drawn molecules.

    Parameters
    ----------
    depth
        float64, shape (n_obs,): nonzeros of each cell.
    kind
        int64, shape (n_obs,): the row of ``popularity`` from which a cell is drawn.
    popularity
        float64, shape (n_kinds, n_vars): how often a molecule falls on a gene.
    obs
        Makes the obs table from the sums of each cell's stored values: ``nnz``, ``raw_sum`` and ``raw_squares``.
    """
    sums = {"nnz": np.zeros(spec.n_obs, np.int64)}
    sums |= {name: np.zeros(spec.n_obs, np.float64) for name in ("raw_sum", "raw_squares")}
    with soma.Experiment.create(uri) as experiment:
        measurement = experiment.add_new_collection("ms").add_new_collection("RNA", soma.Measurement)
        write_var(measurement, spec.n_vars)
        layers = measurement.add_new_collection("X", soma.Collection)
        X = layers.add_new_sparse_ndarray(
            "raw", type=pa.float32(), shape=(spec.n_obs, spec.n_vars), platform_config=_layout(spec)
        )
        write_global_order(X, _row_blocks(spec, depth, kind, popularity, sums))
    with soma.Experiment.open(uri, "w") as experiment:
        write_obs(experiment, obs(sums))


def _layout(spec: StoreSpec) -> dict | None:
    if spec.layout != "census":
        return None
    create = CENSUS_X["tiledb"]["create"]
    dims = {name: {**dim, "tile": spec.tile} for name, dim in create["dims"].items()}
    return {"tiledb": {"create": {**create, "dims": dims, "capacity": spec.capacity or create["capacity"]}}}


def _gene_popularity(rng: np.random.Generator, spec: StoreSpec) -> np.ndarray:
    """float64, shape (n_datasets, n_vars): how often a molecule of a data set falls on a gene."""
    n_expressed = min(spec.n_expressed, spec.n_vars)
    base = rng.lognormal(0, 1.6, spec.n_vars)
    base[n_expressed:] *= 0.002
    each = base * rng.lognormal(0, 0.5, (spec.n_datasets, spec.n_vars))
    return each / each.sum(axis=1, keepdims=True)


def _row_blocks(spec, depth, kind, popularity, sums) -> Iterator[pa.RecordBatch]:
    """The cells of X in global order, a row-block at a time, drawn one row-block ahead."""
    alias = [_alias_table(p) for p in popularity]
    accept = np.array([a for a, _ in alias], np.float32)
    other = np.array([b for _, b in alias], np.int32)
    starts = range(0, spec.n_obs, spec.tile)

    def draw(start: int):
        rows = slice(start, min(start + spec.tile, spec.n_obs))
        return start, _draw(start, depth[rows], kind[rows], accept, other, spec.seed, spec.tile)

    with ThreadPoolExecutor(1) as pool:
        for start, (d0, d1, data, row_nnz) in pool.map(draw, starts):
            rows = slice(start, start + len(row_nnz))
            sums["nnz"][rows] = row_nnz
            sums["raw_sum"][rows] = np.bincount(d0 - start, data, len(row_nnz))
            sums["raw_squares"][rows] = np.bincount(d0 - start, np.square(data, dtype=np.float64), len(row_nnz))
            yield pa.RecordBatch.from_pydict({"soma_dim_0": d0, "soma_dim_1": d1, "soma_data": data})


def write_global_order(X: soma.SparseNDArray, batches: Iterator[pa.RecordBatch]) -> None:
    """One query, so one fragment, whatever the number of batches."""
    query = clib.ManagedQuery(X._handle)
    query.set_layout(clib.ResultOrder.globalorder)
    last = None
    for batch in batches:
        if last is not None:
            query.submit_batch(last)
        last = batch
    query.submit_and_finalize_batch(last)


def write_var(measurement: soma.Measurement, n_vars: int) -> None:
    var = pd.DataFrame(
        {
            "soma_joinid": np.arange(n_vars),
            "feature_id": [f"ENSG{i:011d}" for i in range(n_vars)],
            "feature_name": [f"GENE{i}" for i in range(n_vars)],
        }
    )
    table = pa.Table.from_pandas(var, preserve_index=False)
    frame = measurement.add_new_dataframe(
        "var", schema=table.schema, index_column_names=["soma_joinid"], domain=[(0, n_vars - 1)]
    )
    frame.write(table)


def write_obs(experiment: soma.Experiment, table: pa.Table) -> None:
    frame = experiment.add_new_dataframe(
        "obs", schema=table.schema, index_column_names=["soma_joinid"], domain=[(0, max(len(table) - 1, 0))]
    )
    uri = frame.uri
    frame.close()
    # A handle of its own: dictionary columns written through an older one come back without their values.
    with soma.DataFrame.open(uri, "w") as obs:
        obs.write(table)


def _alias_table(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Walker's alias method (1977): draw from ``p`` with one random number and one comparison."""
    n = len(p)
    accept, other = p * n, np.arange(n)
    small, large = list(np.flatnonzero(accept < 1)), list(np.flatnonzero(accept >= 1))
    while small and large:
        s, g = small.pop(), large[-1]
        other[s] = g
        accept[g] -= 1 - accept[s]
        if accept[g] < 1:
            small.append(large.pop())
    return accept, other


@njit(nogil=True, cache=True)
def _draw(start, depth, kind, accept, other, seed, tile):
    """The cells of one row-block, sorted by (gene // tile, row, gene)."""
    np.random.seed(seed * 1_000_003 + start)
    n_rows, n_vars = len(depth), accept.shape[1]
    counts = np.zeros(n_vars, np.int32)
    genes = numba.typed.List()
    values = numba.typed.List()
    row_nnz = np.zeros(n_rows, np.int64)
    for i in range(n_rows):
        k = kind[i]
        counts[:] = 0
        kept = 0
        target = max(1.0, min(depth[i], n_vars * 0.4))
        while kept < target:
            u = np.random.random() * n_vars
            g = int(u)
            if u - g >= accept[k, g]:
                g = other[k, g]
            if counts[g] == 0:
                kept += 1
            counts[g] += 1
        g_row = np.flatnonzero(counts)
        genes.append(g_row)
        values.append(counts[g_row].astype(np.float32))
        row_nnz[i] = kept
    total = row_nnz.sum()
    d0, d1, data = np.empty(total, np.int64), np.empty(total, np.int64), np.empty(total, np.float32)
    at = np.zeros(n_rows, np.int64)
    out = 0
    for band in range(0, n_vars, tile):
        for i in range(n_rows):
            g_row, v_row = genes[i], values[i]
            j = at[i]
            while j < len(g_row) and g_row[j] < band + tile:
                d0[out], d1[out], data[out] = start + i, g_row[j], v_row[j]
                out += 1
                j += 1
            at[i] = j
    return d0, d1, data, row_nnz


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("uri")
    for name, default in vars(StoreSpec()).items():
        kind = str if name == "layout" else int
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default)
    args = vars(parser.parse_args())
    uri = args.pop("uri")
    if Path(uri).exists():
        parser.error(f"{uri} exists; remove it or give another path")
    started = time.perf_counter()
    write_store(uri, StoreSpec(**args))
    print(f"{uri}: {args['n_obs']:,} x {args['n_vars']:,} in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
