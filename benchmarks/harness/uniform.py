"""Write the cells of the public benchmark of loaders by the authors of homeobox, after its description.

    python -m benchmarks.harness.uniform cells.soma     # 1,000,000 x 20,000: an .h5ad of 11 GB, and SOMA made of it

https://github.com/epiblastai/homeobox/blob/main/docs/dataloader_benchmark.md: 7 % of the values are nonzero, at
uniformly random places; each is 1 plus a geometric number with p = 0.3, as uint32. The ``.h5ad`` is not compressed, and
``tiledbsoma.io`` converts it with its default layout, both as there. ``cell_type`` is added: loaders read one column.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.sparse as sp
import tiledbsoma as soma

from benchmarks.harness.formats import converted
from benchmarks.harness.stores import write_global_order, write_obs, write_var

ROWS = 10_000
"""Rows that are drawn together."""

TILE = 2048
"""Rows, and genes, of a space tile by default."""

N_CELL_TYPES = 20


@dataclass(frozen=True)
class UniformSpec:
    """The size of a store, the fraction of its values that is nonzero, and its seed."""

    n_obs: int = 1_000_000
    n_vars: int = 20_000
    density: float = 0.07
    seed: int = 42


def blocks(spec: UniformSpec) -> Iterator[sp.csr_matrix]:
    """Draw the cells, some rows at a time: the gaps between nonzeros are geometric."""
    for start in range(0, spec.n_obs, ROWS):
        rng = np.random.default_rng([spec.seed, start])
        n_rows = min(ROWS, spec.n_obs - start)
        size = n_rows * spec.n_vars
        mean = size * spec.density
        place = np.cumsum(rng.geometric(spec.density, int(mean + 10 * np.sqrt(mean) + 10))) - 1
        indptr = np.searchsorted(place, np.arange(n_rows + 1) * spec.n_vars)
        columns = (place[: indptr[-1]] % spec.n_vars).astype(np.int32)
        values = (1 + rng.geometric(0.3, len(columns))).astype(np.uint32)
        yield sp.csr_matrix((values, columns, indptr), shape=(n_rows, spec.n_vars))


def obs_frame(spec: UniformSpec) -> pd.DataFrame:
    names = [f"c{i:010d}" for i in range(spec.n_obs)]
    kinds = np.random.default_rng(spec.seed).integers(0, N_CELL_TYPES, spec.n_obs)
    cell_type = pd.Categorical.from_codes(kinds, [f"cell type {i}" for i in range(N_CELL_TYPES)])
    return pd.DataFrame({"cell_type": cell_type}, index=pd.Index(names, name="obs_id"))


def write_h5ad(path: Path, spec: UniformSpec) -> None:
    """Write block by block, so that memory does not grow with the number of cells."""
    obs = obs_frame(spec)
    var = pd.DataFrame(index=pd.Index([f"g{i:06d}" for i in range(spec.n_vars)], name="var_id"))
    drawn = blocks(spec)
    X = next(drawn)
    anndata.AnnData(X, obs=obs[: X.shape[0]], var=var).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        for X in drawn:
            anndata.io.sparse_dataset(file["X"]).append(X)
        anndata.io.write_elem(file, "obs", obs)


def write_soma(uri: str, h5ad: Path) -> None:
    """Write the cells of the file, X in one fragment, in global order: space tile by space tile."""
    with h5py.File(h5ad) as file, soma.Experiment.create(uri) as experiment:
        X, obs = anndata.io.sparse_dataset(file["X"]), anndata.io.read_elem(file["obs"]).reset_index()
        measurement = experiment.add_new_collection("ms").add_new_collection("RNA", soma.Measurement)
        write_var(measurement, X.shape[1])
        layers = measurement.add_new_collection("X", soma.Collection)
        write_global_order(layers.add_new_sparse_ndarray("raw", type=pa.uint32(), shape=X.shape), _row_blocks(X))
    table = pa.Table.from_pandas(obs.assign(soma_joinid=np.arange(len(obs))), preserve_index=False)
    with soma.Experiment.open(uri, "w") as experiment:
        write_obs(experiment, table)


def _row_blocks(X: Any) -> Iterator[pa.RecordBatch]:
    """The cells in global order, a row block at a time."""
    for start in range(0, X.shape[0], TILE):
        block = X[start : start + TILE]
        rows = np.repeat(np.arange(start, start + block.shape[0]), np.diff(block.indptr))
        order = np.argsort((block.indices // TILE).astype(np.uint8), kind="stable")
        d1 = block.indices[order].astype(np.int64)
        yield pa.RecordBatch.from_pydict({"soma_dim_0": rows[order], "soma_dim_1": d1, "soma_data": block.data[order]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("uri")
    parser.add_argument("--n-obs", type=int, default=UniformSpec.n_obs)
    given = parser.parse_args()
    spec = UniformSpec(n_obs=given.n_obs)
    if not converted(given.uri, "h5ad").exists():
        write_h5ad(converted(given.uri, "h5ad"), spec)
    write_soma(given.uri, converted(given.uri, "h5ad"))


if __name__ == "__main__":
    main()
