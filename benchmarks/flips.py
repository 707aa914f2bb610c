"""Single bytes of small stores are flipped, one at a time: what comes is an error, or the right data?

    python -m benchmarks.flips --flips 10000 --out benchmarks/results/flips.json

Each flip is met by a process of its own, as TileDB may crash. Whatever such a process yields is compared, cell by cell,
with what was written: X, genes, joinids and labels.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tests.stores import addressed, write_experiment

import cellfeed
from benchmarks.records import commit

N_OBS, N_VARS = 48, 40
PATIENCE_S = 60

RIGHT, OUR_ERROR, WRONG, OTHER_ERROR = "right data", "error of cellfeed", "wrong data", "another error"
CRASH, HANG = "TileDB crashed", "hung"


def truth() -> tuple[Any, pd.DataFrame]:
    """What is written: counts, and obs with what a Census tells of them."""
    X = addressed(N_OBS, N_VARS, density=0.4)
    X.data %= 200
    X.data += 1
    labels = pd.Categorical([f"type {k % 5}" for k in range(N_OBS)])
    sums = np.asarray(X.sum(axis=1), np.float64).ravel()
    return X, pd.DataFrame({"label": labels, "nnz": np.diff(X.indptr), "raw_sum": sums})


def write_stores(folder: Path) -> list[Path]:
    """Write a store as a Census is, one that forbids duplicates, and one of several fragments."""
    X, obs = truth()
    return [
        Path(write_experiment(folder / name, X, obs, capacity=200, **layout))
        for name, layout in {
            "duplicates_allowed": {},
            "duplicates_forbidden": {"allows_duplicates": False},
            "fragments": {"n_fragments": 3},
        }.items()
    ]


def attempt(uri: str) -> tuple[str, str]:
    """Read the whole store as a user would, and say what came of it."""
    import tiledbsoma as soma

    X, obs = truth()
    try:
        warnings.simplefilter("ignore")
        context = soma.SOMATileDBContext(tiledb_config={"sm.compute_concurrency_level": 1})
        dataset = cellfeed.ExperimentDataset(
            uri, obs_column_names=["soma_joinid", "label"], batch_size=16, seed=0, context=context
        )
        seen = []
        for batch in dataset:
            joinids = batch.obs[:, 0].numpy()
            labels = dataset.obs_encoders["label"].inverse_transform(batch.obs[:, 1])
            if joinids.max() >= N_OBS or not np.array_equal(batch.X.numpy(), X[joinids].toarray()):
                return WRONG, "X"
            if list(labels) != list(obs["label"].iloc[joinids]):
                return WRONG, "labels"
            seen += joinids.tolist()
        if sorted(seen) != list(range(N_OBS)) or dataset.var_joinids.tolist() != list(range(N_VARS)):
            return WRONG, f"{len(seen)} cells, {dataset.shape[1]} genes"
    except cellfeed.CellfeedError as error:
        return OUR_ERROR, type(error).__name__
    except Exception as error:
        return OTHER_ERROR, f"{type(error).__name__}: {error}"
    return RIGHT, ""


def in_a_process(uri: str) -> tuple[str, str]:
    """Attempt it in a fork of this process, which has loaded everything and holds nothing open."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 2)
        os.write(writing, json.dumps(attempt(uri)).encode()[:60_000])
        os._exit(0)
    os.close(writing)
    ready, _, _ = select.select([reading], [], [], PATIENCE_S)
    if not ready:
        os.kill(child, signal.SIGKILL)
    told = os.read(reading, 65_536) if ready else b""
    os.close(reading)
    _, status = os.waitpid(child, 0)
    if told:
        kind, detail = json.loads(told)
        return kind, detail
    return (CRASH, f"signal {os.WTERMSIG(status)}") if ready else (HANG, "")


def kind_of(file: Path, store: Path) -> str:
    """Say what a file holds, in the words of its place."""
    parts = file.relative_to(store).parts
    owner = "X" if "X" in parts and parts[-1] != "__tiledb_group.tdb" else parts[0] if parts[0] == "obs" else None
    owner = owner or ("var" if "var" in parts else "groups")
    if "__schema" in parts:
        return f"{owner}: schema"
    if "__commits" in parts or "__meta" in parts or owner == "groups":
        return f"{owner}: commits, groups and metadata"
    return f"{owner}: fragment metadata" if file.name == "__fragment_metadata.tdb" else f"{owner}: data"


def flips(stores: list[Path], n: int, seed: int) -> Iterator[tuple[Path, Path, int, int]]:
    """Choose kinds of files in turn, a file of the kind, and a byte of it: all are met, however small."""
    rng = random.Random(seed)
    kinds: dict[str, list[tuple[Path, Path]]] = {}
    for store in stores:
        for file in sorted(path for path in store.rglob("*") if path.is_file() and path.stat().st_size):
            kinds.setdefault(kind_of(file, store), []).append((store, file))
    for k in range(n):
        store, file = rng.choice(kinds[sorted(kinds)[k % len(kinds)]])
        yield store, file, rng.randrange(file.stat().st_size), 1 << rng.randrange(8)


def meet(store: Path, file: Path, at: int, mask: int) -> tuple[str, str]:
    """Flip bits of one byte, see what comes, and flip them back."""
    content = file.read_bytes()
    file.write_bytes(content[:at] + bytes([content[at] ^ mask]) + content[at + 1 :])
    try:
        return in_a_process(str(store))
    finally:
        file.write_bytes(content)


def run(n: int, seed: int = 0, progress: bool = False) -> dict[str, dict[str, int]]:
    """Flip bytes and count what came, by kind of file; also print the first of each sort of surprise."""
    folder = Path(tempfile.mkdtemp())
    counts: dict[str, Counter[str]] = {}
    shown: Counter[tuple[str, str, str]] = Counter()
    try:
        stores = write_stores(folder)
        for store in stores:
            attempt_in = in_a_process(str(store))
            assert attempt_in[0] == RIGHT, attempt_in
        for k, flip in enumerate(flips(stores, n, seed)):
            kind = kind_of(flip[1], flip[0])
            came, detail = meet(*flip)
            counts.setdefault(kind, Counter())[came] += 1
            key = (kind, came, detail[:40])
            shown[key] += 1
            if came not in (RIGHT, OUR_ERROR) and shown[key] <= 2:
                print(f"{came}: {kind}, {flip[1].name} byte {flip[2]} ^ {flip[3]}: {detail[:300]}", flush=True)
            if progress and k % 500 == 499:
                print(f"{k + 1} flips", flush=True)
    finally:
        shutil.rmtree(folder)
    return {kind: dict(counts[kind]) for kind in sorted(counts)}


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warm_up()
    counts = run(options.flips, options.seed, progress=True)
    print(pd.DataFrame(counts).T.fillna(0).astype(int).to_string())
    if options.out is not None:
        options.out.write_text(json.dumps({"commit": commit(), "flips": options.flips, "counts": counts}, indent=1))


def warm_up() -> None:
    """Load what is loaded late, kernels among them, without leaving a TileDB thread behind."""
    import torch

    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    store = write_stores(folder)[0]
    print(attempt(str(store)))
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
