"""Run epochs over S3 with random faults for half an hour; check that each is exact and that no resource grows.

    python -m benchmarks.soak --minutes 30 --out benchmarks/results/soak.jsonl

The loader runs in this process, the server and the proxy in others. Resources are memory, threads and open files.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import scipy.sparse as sp
from tests.support.fault_proxy import ProxyProcess
from tests.support.s3 import object_settings, s3_server
from tests.support.stores import addressed
from tests.support.threads import beside

import cellfeed
from benchmarks.harness import remote
from benchmarks.harness.contenders import PACKAGES
from benchmarks.harness.records import append, commit, versions

WEATHER: list[dict[str, Any]] = [
    {},
    {"latency_s": 0.05, "jitter_s": 0.05},
    {"bandwidth": 4e6},
    {"reset": 0.3},
    {"error": 0.3, "status": 503},
    {"error": 0.3, "status": 500},
    {"limit_data": 1000, "limit_share": 0.3},
    {"slicer_bytes": 20_000, "slicer_delay_s": 0.002},
    {"timeout": 0.05},
    {"down": True},
]
CHANGES_S = (0.5, 3.0)
"""The faults change after a random number of seconds between these two."""

GAUGES = {"rss": statistics.median, "threads": min, "files": min}
"""How several epochs are summarised: a thread that waits for TileDB may outlive its epoch, a leaked thread stays."""

MAY_GROW = {"rss": 0.05, "threads": 0.0, "files": 0.0}
"""Growth that still counts as flat, as a share: from the third of the epochs after warming up to the last."""


def weather(proxy: ProxyProcess, seed: int) -> AbstractContextManager[None]:
    """Change the faults at random, beside the body of a context."""
    chance = random.Random(seed)

    def change(over: threading.Event) -> None:
        while not over.wait(chance.uniform(*CHANGES_S)):
            proxy.set(**chance.choice(WEATHER))
        proxy.set()

    return beside(change)


def check_epoch(dataset: cellfeed.ExperimentDataset, X: sp.csr_matrix) -> None:
    """Run an epoch; raise an error unless each cell comes once, with the values that were written."""
    seen = np.zeros(X.shape[0], np.int64)
    for minibatch, obs in dataset:
        joinids = obs[:, 0].numpy()
        got = sp.csr_matrix(
            (minibatch.values().numpy(), minibatch.col_indices().numpy(), minibatch.crow_indices().numpy()),
            shape=(len(joinids), X.shape[1]),
        )
        if (got != X[joinids]).nnz:
            raise AssertionError(f"wrong values among the cells {joinids.tolist()}")
        seen[joinids] += 1
    if (seen != 1).any():
        raise AssertionError(f"{(seen == 0).sum()} cells did not come, {(seen > 1).sum()} came more than once")


def gauges() -> dict[str, int]:
    """Return the memory, threads and open files of this process."""
    gc.collect()
    me = psutil.Process()
    return {"rss": me.memory_info().rss, "threads": me.num_threads(), "files": me.num_fds()}


def epochs(seconds: float, *, n_obs: int, least: int = 6, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield a record of each epoch until the time is over, and a minimum number of records."""
    with tempfile.TemporaryDirectory() as folder, s3_server() as s3, ProxyProcess(s3.endpoint, seed=seed) as proxy:
        uri = s3.upload(remote.write(folder, n_obs))
        X = addressed(n_obs, remote.N_VARS, remote.DENSITY)
        dataset = remote.open_dataset(uri, object_settings(proxy.endpoint), retry_deadline_s=120.0)
        started, k = time.perf_counter(), 0
        with weather(proxy, seed):
            while k < least or time.perf_counter() - started < seconds:
                began, counts = time.perf_counter(), proxy.counts
                check_epoch(dataset, X)
                struck = {name: n - counts.get(name, 0) for name, n in proxy.counts.items()}
                yield {
                    "epoch": k,
                    "at_s": time.perf_counter() - started,
                    "seconds": time.perf_counter() - began,
                    "retries": dataset.stats().n_retries,
                    **gauges(),
                    "proxy": struck,
                }
                k += 1


def growth(records: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Summarise each gauge over the second and over the last third of the epochs; the first third warms up."""
    third = max(1, len(records) // 3)
    parts = records[third : 2 * third], records[-third:]
    return {name: tuple(typical(one[name] for one in part) for part in parts) for name, typical in GAUGES.items()}


def flat(records: list[dict[str, Any]]) -> dict[str, bool]:
    """Return for each gauge whether it stays constant."""
    return {name: late <= early * (1 + MAY_GROW[name]) for name, (early, late) in growth(records).items()}


def run(minutes: float, path: str, out: Path | None) -> None:
    """Run the epochs, write records and print a summary."""
    os.environ.update(remote.READING_PATHS[path])
    logging.getLogger("cellfeed").setLevel(logging.ERROR)  # each fault is logged as a warning
    about = {"suite": "soak", "commit": commit(), "cores": os.cpu_count(), "versions": versions(PACKAGES), "path": path}
    records = []
    for record in epochs(minutes * 60, n_obs=remote.N_OBS):
        records.append(record)
        append(out, about | record)
        print(
            f"epoch {record['epoch']}: {record['seconds']:.1f} s, {record['retries']} retries so far, "
            f"{record['rss'] / 1e6:.0f} MB, {record['threads']} threads, {record['files']} files",
            flush=True,
        )
    kept = flat(records)
    print(f"\n{len(records)} epochs in {records[-1]['at_s'] / 60:.0f} minutes, all exact")
    for name, (early, late) in growth(records).items():
        print(f"{name}: {early:,.0f}, later {late:,.0f}: {'flat' if kept[name] else 'GROWS'}")
    append(out, {**about, "epochs": len(records), "growth": growth(records), "flat": kept})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--path", choices=remote.READING_PATHS, default="direct")
    parser.add_argument("--out", type=Path, help="append records here, a JSON line each")
    options = parser.parse_args()
    run(options.minutes, options.path, options.out)


if __name__ == "__main__":
    main()
