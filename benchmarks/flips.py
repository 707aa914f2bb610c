"""Flip single bits of stores, one at a time, and check that a reader yields the right data or raises an error.

    python -m benchmarks.flips --flips 10000 --out benchmarks/results/flips.json

Each flip is read by a process of its own, as TileDB may crash, in one of several ways: all cells, a row-block,
scattered cells, small chunks, mixed minibatches, some genes. All that such a process yields is compared with the
data that were written: X, joinids, labels of obs and names of genes. Some stores are tiny, so that bits of all files
are flipped; two have the layout of a Census, with tiles that straddle row-blocks.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import shutil
import signal
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import tiledbsoma as soma
from tests.support.stores import addressed, write_experiment

import cellfeed
from benchmarks.harness.records import commit
from benchmarks.harness.stores import StoreSpec, write_store

N_OBS, N_VARS = 48, 40
PATIENCE_S = 60

RIGHT, OUR_ERROR, OTHER_ERROR = "right data", "error of cellfeed", "another error"
WRONG_X, WRONG_OBS, WRONG_VAR = "wrong X", "wrong cells or labels of obs", "wrong genes or names of var"
CRASH, HANG = "TileDB crashed", "hung"

CENSUS = {
    "straddling": StoreSpec(n_obs=9_000, n_vars=1_500, nnz_per_cell=150, n_expressed=1_400, n_datasets=9),
    "larger": StoreSpec(n_obs=12_000, n_vars=4_500, nnz_per_cell=300, n_expressed=4_000, n_datasets=9),
}

WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "row-block": {"obs_query": [slice(0, 2047)]},
    "scattered": {"obs_query": [5, 20]},
    "chunks": {"soma_chunk_size": 64, "shuffle_chunk_count": 8},
    "mixing": {"mixing": 0.9, "memory_budget": "150 MiB"},
    "genes": {"var_query": [1, 3]},
    "values as stored": {"X_dtype": "stored"},
}
"""Ways to read a store. A query is a slice, or the first joinid and the step to the next."""


@dataclass(frozen=True, eq=False)
class Truth:
    """The content of a store: X, a label of each cell by joinid, and the name of each gene."""

    X: sp.csr_matrix
    column: str
    labels: np.ndarray
    genes: np.ndarray


def tiny() -> tuple[Any, pd.DataFrame]:
    """Return the data of the tiny stores: counts, and obs with the figures of each row as a Census has them."""
    X = addressed(N_OBS, N_VARS, density=0.4)
    X.data %= 200
    X.data += 1
    labels = pd.Categorical([f"type {k % 5}" for k in range(N_OBS)])
    obs = {"cell_type": labels, "nnz": np.diff(X.indptr), "raw_sum": np.asarray(X.sum(axis=1), np.float64).ravel()}
    obs["raw_variance_nnz"] = [X.data[low:high].astype(np.float64).var(ddof=1) for low, high in pairwise(X.indptr)]
    return X, pd.DataFrame(obs)


def write_stores(folder: Path) -> list[Path]:
    """Write the tiny stores, with and without duplicates and of several fragments, and those of a Census."""
    X, obs = tiny()
    stores = [
        Path(write_experiment(folder / name, X, obs, capacity=200, **layout))
        for name, layout in {
            "duplicates_allowed": {},
            "duplicates_forbidden": {"allows_duplicates": False},
            "fragments": {"n_fragments": 3},
        }.items()
    ]
    for name, spec in CENSUS.items():
        write_store(str(folder / name), spec)
        stores.append(folder / name)
    return stores


@cache
def truth_of(store: Path) -> Truth:
    """Read a store that is sound, through tiledbsoma; with a context that ends, as a fork would inherit its threads."""
    with soma.open(str(store), context=soma.SOMATileDBContext()) as experiment:
        obs = experiment.obs.read(column_names=["cell_type"]).concat().to_pandas()
        rna = experiment.ms["RNA"]
        names = rna.var.read(column_names=["feature_name"]).concat().to_pandas()["feature_name"]
        table = rna.X["raw"].read().tables().concat()
    places = table["soma_dim_0"].to_numpy(), table["soma_dim_1"].to_numpy()
    X = sp.csr_matrix((table["soma_data"].to_numpy(), places), shape=(len(obs), len(names)))
    return Truth(X, "cell_type", obs["cell_type"].astype(str).to_numpy(), names.to_numpy().astype(str))


def parameters_of(way: Mapping[str, Any], truth: Truth) -> dict[str, Any]:
    """Return the parameters of a dataset that reads a store in a way."""
    parameters = dict(way)
    for query, size in (("obs_query", len(truth.labels)), ("var_query", len(truth.genes))):
        if query in parameters:
            first, *step = parameters[query]
            joinids = first if isinstance(first, slice) else list(range(first, size, *step))
            parameters[query] = soma.AxisQuery(coords=(joinids,))
    return parameters


Attempt = Callable[[Path, str], tuple[str, str]]
"""Reads a store in a way, and returns the outcome and a detail."""


def attempt(store: Path, way: str) -> tuple[str, str]:
    """Read a store as a user would, and return the outcome."""
    truth = truth_of(store)
    try:
        warnings.simplefilter("ignore")
        context = soma.SOMATileDBContext(tiledb_config={"sm.compute_concurrency_level": 1})
        dataset = cellfeed.ExperimentDataset(
            str(store),
            obs_column_names=["soma_joinid", truth.column],
            batch_size=16 if len(truth.labels) < 1000 else 512,
            return_sparse_X=True,
            seed=0,
            context=context,
            **parameters_of(WAYS[way], truth),
        )
        return compare(dataset, truth, WAYS[way])
    except cellfeed.CellfeedError as error:
        return OUR_ERROR, type(error).__name__
    except Exception as error:
        return OTHER_ERROR, f"{type(error).__name__}: {error}"


def compare(dataset: cellfeed.ExperimentDataset, truth: Truth, way: Mapping[str, Any]) -> tuple[str, str]:
    """Compare all that a dataset yields with the truth: X by its joinids, then which cells and genes these are."""
    n_obs, n_vars = truth.X.shape
    cells, genes = (np.array(coords) for coords in _expected(way, n_obs, n_vars))
    columns = dataset.var_joinids
    seen = []
    for batch in dataset:
        joinids = batch.obs[:, 0].numpy()
        if joinids.max() >= n_obs or columns.max() >= n_vars:
            return WRONG_X, "a cell or gene that the store does not have"
        got = sp.csr_matrix(
            (batch.X.values().numpy(), batch.X.col_indices().numpy(), batch.X.crow_indices().numpy()), batch.X.shape
        )
        if (got != truth.X[joinids][:, columns]).nnz:
            return WRONG_X, "values"
        labels = dataset.obs_encoders[truth.column].inverse_transform(batch.obs[:, 1])
        if not np.array_equal(np.asarray(labels).astype(str), truth.labels[joinids]):
            return WRONG_OBS, "labels"
        seen += joinids.tolist()
    if sorted(seen) != cells.tolist():
        return WRONG_OBS, f"{len(seen)} cells"
    if not np.array_equal(columns, genes):
        return WRONG_VAR, f"{len(columns)} genes"
    if not np.array_equal(dataset.gene_names("feature_name"), truth.genes[genes]):
        return WRONG_VAR, "names"
    return RIGHT, ""


def _expected(way: Mapping[str, Any], n_obs: int, n_vars: int) -> list[range]:
    """Return the joinids of cells and of genes that a way selects."""
    expected = []
    for query, size in (("obs_query", n_obs), ("var_query", n_vars)):
        first, *step = way.get(query, (0, 1))
        expected.append(range(size)[: first.stop + 1] if isinstance(first, slice) else range(first, size, *step))
    return expected


def in_a_process(store: Path, way: str, attempt: Attempt = attempt) -> tuple[str, str]:
    """Attempt it in a fork of this process, which has loaded everything and holds nothing open."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 2)
        os.write(writing, json.dumps(attempt(store, way)).encode()[:60_000])
        os._exit(0)
    os.close(writing)
    ready, _, _ = select.select([reading], [], [], PATIENCE_S)
    if not ready:
        os.kill(child, signal.SIGKILL)
    report = os.read(reading, 65_536) if ready else b""
    os.close(reading)
    _, status = os.waitpid(child, 0)
    if report:
        kind, detail = json.loads(report)
        return kind, detail
    return (CRASH, f"signal {os.WTERMSIG(status)}") if ready else (HANG, "")


def kind_of(file: Path, store: Path) -> str:
    """Return the kind of a file, from its path."""
    parts = file.relative_to(store).parts
    owner = "X" if "X" in parts and parts[-1] != "__tiledb_group.tdb" else parts[0] if parts[0] == "obs" else None
    owner = owner or ("var" if "var" in parts else "groups")
    if "__schema" in parts:
        return f"{owner}: schema"
    if "__commits" in parts or "__meta" in parts or owner == "groups":
        return f"{owner}: commits, groups and metadata"
    if file.name == "__fragment_metadata.tdb":
        return f"{owner}: fragment metadata"
    return f"X: {X_FILES[file.stem]}" if owner == "X" and file.stem in X_FILES else f"{owner}: data"


X_FILES = {"d0": "rows", "d1": "columns", "a0": "values"}

WEIGHT = 4
"""Flips of a file of X for each flip of another kind of file."""


def flips(stores: list[Path], n: int, seed: int) -> Iterator[tuple[Path, Path, int, int, str]]:
    """Choose kinds of files in turn, a file of the kind, a byte and a bit of it, and a way to read the store."""
    of_x = [f"X: {name}" for name in X_FILES.values()]
    yield from choose_flips(stores, n, seed, kind_of, of_x, list(WAYS))


def choose_flips(
    stores: list[Path], n: int, seed: int, kind: Callable[[Path, Path], str], often: list[str], ways: list[str]
) -> Iterator[tuple[Path, Path, int, int, str]]:
    """Choose as :func:`flips`, the kinds in ``often`` more often than others."""
    rng = random.Random(seed)
    kinds: dict[str, list[tuple[Path, Path]]] = {}
    for store in stores:
        for file in sorted(path for path in store.rglob("*") if path.is_file() and path.stat().st_size):
            kinds.setdefault(kind(file, store), []).append((store, file))
    turns = sorted([*kinds, *often * (WEIGHT - 1)])
    for k in range(n):
        store, file = rng.choice(kinds[turns[k % len(turns)]])
        yield store, file, rng.randrange(file.stat().st_size), 1 << rng.randrange(8), rng.choice(ways)


def meet(store: Path, file: Path, at: int, mask: int, way: str, attempt: Attempt = attempt) -> tuple[str, str]:
    """Flip bits of one byte, read the store, and flip them back."""
    content = file.read_bytes()
    file.write_bytes(content[:at] + bytes([content[at] ^ mask]) + content[at + 1 :])
    try:
        return in_a_process(store, way, attempt)
    finally:
        file.write_bytes(content)


def run(n: int, seed: int = 0, progress: bool = False) -> dict[str, dict[str, int]]:
    """Flip bytes and count the outcomes by kind of file; also print the first of each kind of failure."""
    folder = Path(tempfile.mkdtemp())
    try:
        stores = write_stores(folder)
        for store in stores:
            truth_of(store)  # children inherit it
            for way in WAYS:
                sound = in_a_process(store, way)
                assert sound[0] == RIGHT, (store.name, way, sound)
        return count(flips(stores, n, seed), kind_of, attempt, progress=progress)
    finally:
        shutil.rmtree(folder)


def count(
    chosen: Iterable[tuple[Path, Path, int, int, str]],
    kind_of: Callable[[Path, Path], str],
    attempt: Attempt,
    *,
    progress: bool,
) -> dict[str, dict[str, int]]:
    """Count the outcomes of flips by kind of file."""
    counts: dict[str, Counter[str]] = {}
    shown: Counter[tuple[str, str, str]] = Counter()
    for k, flip in enumerate(chosen):
        kind = kind_of(flip[1], flip[0])
        came, detail = meet(*flip, attempt)
        counts.setdefault(kind, Counter())[came] += 1
        key = (kind, came, detail[:40])
        shown[key] += 1
        if came not in (RIGHT, OUR_ERROR) and shown[key] <= 2:
            where = f"{flip[0].name}, {flip[1].name} byte {flip[2]} ^ {flip[3]}, {flip[4]}"
            print(f"{came}: {kind}, {where}: {detail[:300]}", flush=True)
        if progress and k % 500 == 499:
            print(f"{k + 1} flips", flush=True)
    return {kind: dict(counts[kind]) for kind in sorted(counts)}


def parse(description: str | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    """Run and print the table."""
    options = parse(__doc__)
    warm_up()
    report(run(options.flips, options.seed, progress=True), options)


def report(counts: dict[str, dict[str, int]], options: argparse.Namespace) -> None:
    """Print the table, and write it to a file."""
    print(pd.DataFrame(counts).T.fillna(0).astype(int).to_string())
    if options.out is not None:
        options.out.write_text(json.dumps({"commit": commit(), "flips": options.flips, "counts": counts}, indent=1))


def warm_up() -> None:
    """Load kernels and modules before the fork, without leaving a TileDB thread behind."""
    import torch

    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    for store in write_stores(folder):
        for way in WAYS:
            assert attempt(store, way)[0] == RIGHT, (store.name, way, attempt(store, way))
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
