"""Is a selection of a Census's size made in a minute, small, and quick to plan?

    python -m benchmarks.selection hundred_million.soma --n-obs 100000000

Writes, if it is not there, an experiment with an obs of that length, two dictionary columns and an X of no values.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import tiledbsoma as soma

import cellfeed
from benchmarks.harness.stores import CENSUS_X
from cellfeed.plan.epoch import World
from cellfeed.plan.windows import ShardWindows

CHUNK = 10_000_000


def write(uri: str, n_obs: int) -> None:
    with soma.Experiment.create(uri) as experiment:
        rna = experiment.add_new_collection("ms").add_new_collection("RNA", soma.Measurement)
        layers = rna.add_new_collection("X", soma.Collection)
        layers.add_new_sparse_ndarray("raw", type=pa.float32(), shape=(n_obs, 1000), platform_config=CENSUS_X)
        var = pa.table({"soma_joinid": np.arange(1000)})
        rna.add_new_dataframe("var", schema=var.schema, index_column_names=["soma_joinid"], domain=[(0, 999)]).write(
            var
        )
        schema = pa.Table.from_pandas(_obs(0, 10), preserve_index=False).schema
        created = experiment.add_new_dataframe(
            "obs", schema=schema, index_column_names=["soma_joinid"], domain=[(0, n_obs - 1)]
        )
        obs_uri = created.uri
        created.close()
    for start in range(0, n_obs, CHUNK):
        with soma.DataFrame.open(obs_uri, "w") as obs:
            obs.write(pa.Table.from_pandas(_obs(start, min(start + CHUNK, n_obs)), preserve_index=False))


def _obs(start: int, stop: int) -> pd.DataFrame:
    joinid = np.arange(start, stop)
    return pd.DataFrame(
        {
            "soma_joinid": joinid,
            "cell_type": pd.Categorical.from_codes(joinid * 7919 % 700, [f"cell type {i}" for i in range(700)]),
            "dataset_id": pd.Categorical.from_codes(joinid // 100_000 % 1000, [f"dataset {i}" for i in range(1000)]),
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("uri")
    parser.add_argument("--n-obs", type=int, default=100_000_000)
    options = parser.parse_args()
    if not Path(options.uri).exists():
        write(options.uri, options.n_obs)
    started = time.perf_counter()
    dataset = cellfeed.ExperimentDataset(
        options.uri, obs_column_names=["cell_type", "dataset_id"], batch_size=1024, seed=0
    )
    print(f"constructed in {time.perf_counter() - started:.1f} s")
    selection = dataset._engine.selection
    held = selection.joinids.offsets.nbytes + sum(codes.nbytes for codes in selection.codes.values())
    print(f"holds {held / options.n_obs:.1f} bytes per cell")
    started = time.perf_counter()
    plan = dataset._engine.media.source.planner.epoch_order(0)
    shard = ShardWindows(plan, *plan.shard(World()))
    next(shard.windows())
    print(f"first window of a fresh plan in {(time.perf_counter() - started) * 1e3:.0f} ms ({len(shard)} windows)")
    seconds = []
    for left in np.random.default_rng(0).integers(0, plan.n_cells, 20):
        started = time.perf_counter()
        next(shard.windows(int(left)))
        seconds.append(time.perf_counter() - started)
    print(f"any window in {np.median(seconds) * 1e3:.1f} ms (median of 20; largest {max(seconds) * 1e3:.1f} ms)")


if __name__ == "__main__":
    main()
