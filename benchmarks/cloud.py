"""Read a store from a distant object store: each response takes 50 ms, all together get 40 MB/s.

    python -m benchmarks.cloud census_131k.soma --peers peers --out benchmarks/results/cloud.jsonl

The store is uploaded into moto's S3 server, and a proxy before it simulates the line; each is a process of its own on
the same machine, and so is each contender. Contenders run whole epochs until the time is over. The line can carry
its bandwidth divided by the bytes per cell in the files of X, in cells per second.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import tiledbsoma as soma
from tests.support.fault_proxy import ProxyProcess
from tests.support.s3 import S3Server, object_settings, s3_server

from benchmarks.harness.contenders import Case
from benchmarks.harness.records import append, commit
from benchmarks.harness.run import TUNED, run_once
from benchmarks.harness.stores import StoreSpec, write_store

LINE = {"latency_s": 0.05, "jitter_s": 0.0, "bandwidth": 40e6}
AMPLIFIED = {"io_batch_size": 4096}
"""At which each row-block is visited for a chunk of 64 rows, as happens by itself in a store of millions of cells."""

MAX_SECONDS = 400.0
"""Maximum duration of an epoch, which is then stopped."""


@dataclass(frozen=True)
class Line:
    """The server and the proxy between a contender and the store."""

    s3: S3Server
    proxy: ProxyProcess

    def sent(self) -> dict[str, float]:
        """Return the bytes sent so far, and the seconds of CPU that they took."""
        times = {name: psutil.Process(pid).cpu_times() for name, pid in self._pids().items()}
        counts = self.proxy.counts
        sent: dict[str, float] = {name: counts.get(name, 0) for name in ("requests", "bytes")}
        return sent | {f"{name}_cpu_s": one.user + one.system for name, one in times.items()}

    def _pids(self) -> dict[str, int]:
        return {"server": self.s3.pid, "proxy": self.proxy.pid}


def contenders(uri: str, endpoint: str, warm_uri: str, seconds: float) -> list[tuple[str, str, Case]]:
    """Label, contender, case; ratios are taken against the first."""
    base = Case(
        uri,
        warm_uri=warm_uri,
        tiledb_config=object_settings(endpoint),
        seconds=seconds,
        max_seconds=max(MAX_SECONDS, seconds),
    )
    tuned = {"tiledb_config": {**TUNED, "sm.io_concurrency_level": "32", "vfs.s3.max_parallel_ops": "32"}}
    del tuned["tiledb_config"]["sm.mem.tile_upper_memory_limit"]  # of use on local disks; here it makes small requests
    return [
        ("cellfeed", "cellfeed", base),
        ("tiledbsoma-ml", "tiledbsoma_ml", base),
        ("tiledbsoma-ml tuned", "tiledbsoma_ml", replace(base, options={**tuned, "malloc": True})),
        ("tiledbsoma-ml, amplified", "tiledbsoma_ml", replace(base, options=AMPLIFIED)),
    ]


def bytes_per_cell(store: Path) -> float:
    """Return the bytes of the data files of X for each cell."""
    with soma.open(str(store)) as experiment:
        n_obs = experiment.obs.count
    fragments = store / "ms/RNA/X/raw/__fragments"
    return sum(path.stat().st_size for path in fragments.glob("*/[ad][0-9]*.tdb")) / n_obs


def measure(line: Line, label: str, contender: str, case: Case, peers: Path) -> dict[str, Any] | None:
    """Run one contender over the line; add the traffic since the store was opened to its record."""
    before, load = line.sent(), os.getloadavg()[0]  # of others on this machine
    record = run_once(label, contender, case, peers)
    if record is None:
        return None
    del record["case"]["tiledb_config"]  # an address that was this run's alone
    sent = {name: amount - before[name] for name, amount in line.sent().items()}
    return {
        **record,
        "load": load,
        "sent": sent,
        "first_s": record["passes"][0]["first_s"],
        **overall(record["passes"]),
    }


def overall(passes: list[dict[str, Any]]) -> dict[str, float]:
    """Return the cells, seconds and rates of all epochs together."""
    cells, seconds = (sum(one[name] for one in passes) for name in ("cells", "seconds"))
    return {"cells": cells, "seconds": seconds, "cells_per_s": cells / seconds}


def run(store: Path, *, peers: Path, repeat: int, seconds: float, labels: list[str] | None) -> Iterator[dict[str, Any]]:
    """Yield a record of each run; contenders take turns."""
    cell_bytes = bytes_per_cell(store)
    about: dict[str, Any] = {"commit": commit(), "cores": os.cpu_count(), "line": LINE, "bytes_per_cell": cell_bytes}
    about |= {"server": f"moto {metadata.version('moto')}", "cells_per_s_of_line": LINE["bandwidth"] / cell_bytes}
    with tempfile.TemporaryDirectory() as folder, s3_server() as s3, ProxyProcess(s3.endpoint) as proxy:
        write_store(f"{folder}/warm.soma", StoreSpec(n_obs=2048, nnz_per_cell=500))
        uri = s3.upload(store)
        proxy.set(**LINE)
        cases = contenders(uri, proxy.endpoint, f"{folder}/warm.soma", seconds)
        for k in range(repeat):
            for label, contender, case in cases:
                if labels is None or label in labels:
                    record = measure(Line(s3, proxy), label, contender, case, peers)
                    if record is None:
                        print(f"skipped {label}: no environment for it under {peers}")
                        continue
                    yield {"suite": "cloud", "repeat": k, **about, **record}


def summary(records: list[dict[str, Any]]) -> str:
    """Medians over the repeats."""
    labels = list(dict.fromkeys(record["label"] for record in records))
    rates = {label: [r["cells_per_s"] for r in records if r["label"] == label] for label in labels}
    heads = f"{'':26} {'cells/s':>8} {'min..max':>15} {'of the line':>11} {'first s':>8} {'sent / needed':>13}"
    lines = [f"{heads} {'server cpu':>10} ratio"]
    for label in labels:
        mine = [record for record in records if record["label"] == label]

        def median(get: Any, mine: list[dict[str, Any]] = mine) -> float:
            return statistics.median(map(get, mine))

        rate = statistics.median(rates[label])
        lines.append(
            f"{label:26} {rate:8,.0f} {min(rates[label]):7,.0f}..{max(rates[label]):<6,.0f}"
            f"{median(lambda r: r['cells_per_s'] / r['cells_per_s_of_line']):12.0%} "
            f"{median(lambda r: r['first_s']):8.2f} "
            f"{median(lambda r: r['sent']['bytes'] / (r['cells'] * r['bytes_per_cell'])):13.2f} "
            f"{median(lambda r: (r['sent']['server_cpu_s'] + r['sent']['proxy_cpu_s']) / r['seconds']):10.0%} "
            f"{statistics.median(rates[labels[0]]) / rate:.1f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path, help="a local store, which is uploaded")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0, help="minimum duration of all epochs")
    parser.add_argument("--peers", type=Path, default=Path("peers"), help="folder of the peers' environments")
    parser.add_argument("--only", action="append", dest="labels", metavar="LABEL", help="default: all contenders")
    parser.add_argument("--out", type=Path, help="append records here, a JSON line each")
    options = parser.parse_args()
    records = []
    for record in run(
        options.store,
        peers=options.peers,
        repeat=options.repeat,
        seconds=options.seconds,
        labels=options.labels,
    ):
        records.append(record)
        print(f"{record['label']}: {record['cells_per_s']:,.0f} cells/s", flush=True)
        append(options.out, record)
    print(f"\n{summary(records)}")


if __name__ == "__main__":
    main()
