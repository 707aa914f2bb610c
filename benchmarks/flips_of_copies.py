"""Flip single bits of copies, one at a time, as :mod:`benchmarks.flips` does of stores.

    python -m benchmarks.flips_of_copies --flips 10000 --out benchmarks/results/flips_of_copies.json

One copy is a single AnnData by ``write_copy``; the other has two parts, and is read by its path and as ``local_copy=``.
An error must name a file, or say that the metadata are damaged.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import warnings
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from tests.support.stores import write_experiment

import cellfeed
from benchmarks import flips
from benchmarks.flips import OTHER_ERROR, OUR_ERROR, RIGHT, WAYS, Truth
from cellfeed.sources.anndata.copies import layout

SINGLE, PARTS = "single.zarr", "parts.zarr"

SMALL = layout.Layout(chunk_size=64, shard_chunks=3)
"""Chunks and shards of which a tiny store has several."""

LOCAL = "local copy"
"""A way to read the copy of two parts."""

KINDS = {name: {k: way for k, way in WAYS.items() if k != "mixing"} for name in (SINGLE, PARTS)}
KINDS[PARTS] = {**KINDS[PARTS], LOCAL: {}}

UNNAMED = "an error that names neither a file nor the copy"


def write_copies(folder: Path) -> list[Path]:
    """Write a tiny store and its copies."""
    X, obs = flips.tiny()
    folder.mkdir(exist_ok=True)
    source = write_experiment(folder / "cells.soma", X, obs, capacity=200)
    with mock.patch.object(layout.Layout.__init__, "__defaults__", tuple(asdict(SMALL).values())):
        single = cellfeed.ExperimentDataset(source, seed=0).write_copy(folder / SINGLE)
        copied = cellfeed.ExperimentDataset(single, seed=0, local_copy=folder / PARTS)
        for part in copied.random_split([0.5, 0.5], seed=0):
            list(part)
    return [folder / SINGLE, folder / PARTS]


@cache
def truth() -> Truth:
    """Return what the copies must hold."""
    X, obs = flips.tiny()
    return Truth(
        X, "cell_type", obs["cell_type"].astype(str).to_numpy(), np.array([f"G{j}" for j in range(X.shape[1])])
    )


def attempt(store: Path, way: str) -> tuple[str, str]:
    """Read a copy as a user would, and return the outcome."""
    parameters: dict[str, Any] = flips.parameters_of(KINDS[store.name][way], truth())
    source = store
    if way == LOCAL:
        source, parameters["local_copy"] = store.with_name(SINGLE), store
    try:
        warnings.simplefilter("ignore")
        dataset = cellfeed.ExperimentDataset(
            source,
            obs_column_names=["soma_joinid", "cell_type"],
            batch_size=16,
            return_sparse_X=True,
            seed=0,
            **parameters,
        )
        return flips.compare(dataset, truth(), KINDS[store.name][way])
    except cellfeed.CellfeedError as error:
        named = re.search(rf"{store.name}|/c/\d", str(error))
        return (OUR_ERROR, type(error).__name__) if named else (UNNAMED, str(error))
    except Exception as error:
        return OTHER_ERROR, f"{type(error).__name__}: {error}"


def kind_of(file: Path, store: Path) -> str:
    """Return the kind of a file, from its path."""
    names = file.relative_to(store).parts
    if names[0].startswith("dataset_"):
        names = names[1:]
    if names == ("zarr.json",):
        return "metadata: of all arrays"
    if names[-1] == "zarr.json":
        return "metadata: of one array or group"
    return f"X: {names[1]}" if names[0] == "X" else names[0]


def run(n: int, seed: int = 0, progress: bool = False) -> dict[str, dict[str, int]]:
    """Flip bytes and count the outcomes by kind of file."""
    folder = Path(tempfile.mkdtemp())
    try:
        stores = write_copies(folder)
        for store in stores:
            for way in KINDS[store.name]:
                sound = attempt(store, way)  # children inherit what it has loaded
                assert sound[0] == RIGHT, (store.name, way, sound)
        often = ["X: data", "X: indices", "X: indptr", "obs", "metadata: of all arrays"]
        chosen = flips.choose_flips(stores, n, seed, kind_of, often, list(KINDS[SINGLE]))
        ways = ((*flip[:4], LOCAL if flip[0].name == PARTS and k % 2 else flip[4]) for k, flip in enumerate(chosen))
        return flips.count(ways, kind_of, attempt, progress=progress)
    finally:
        shutil.rmtree(folder)


def main() -> None:
    """Run and print the table."""
    options = flips.parse(__doc__)
    flips.report(run(options.flips, options.seed, progress=True), options)


if __name__ == "__main__":
    main()
