"""Network faults while a store is read from S3: which epochs are unchanged, and which end in an error.

    python -m benchmarks.faults table --out benchmarks/results/faults.jsonl

A fault begins after the first minibatch. Each epoch runs in a process of its own, and so do the server and the proxy
that causes the faults.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.support.fault_proxy import ProxyProcess
from tests.support.s3 import object_settings, s3_server

import cellfeed
from benchmarks.harness import remote
from benchmarks.harness.contenders import PACKAGES
from benchmarks.harness.records import append, commit, environment, versions
from benchmarks.harness.remote import READING_PATHS

DEADLINE_S = 30.0
PATIENCE_S = 180.0
"""An epoch that takes longer counts as hung."""


@dataclass(frozen=True)
class Trial:
    """A fault, its duration, and the expected outcome."""

    name: str
    faults: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None  # None: to the end of the epoch
    deadline_s: float = DEADLINE_S
    expected: str = "exact"


TRIALS = [
    Trial("none"),
    Trial("latency of 50 ± 25 ms", {"latency_s": 0.05, "jitter_s": 0.025}),
    Trial("2 MB/s in all", {"bandwidth": 2e6}),
    Trial("outage of 1 s", {"down": True}, 1),
    Trial("outage of 5 s", {"down": True}, 5),
    Trial("outage of 10 s", {"down": True}, 10),
    Trial("30 % of requests reset", {"reset": 0.3}),
    Trial("503 to all for 5 s", {"error": 1.0, "status": 503}, 5),
    Trial("503 to half", {"error": 0.5, "status": 503}),
    Trial("30 % of bodies cut", {"limit_data": 1000, "limit_share": 0.3}),
    Trial("10 % never answered", {"timeout": 0.1}),
    Trial("outage beyond the deadline of 5 s", {"down": True}, None, 5.0, "error"),
    Trial("403 to all", {"error": 1.0, "status": 403}, expected="error"),
    Trial("404 to all", {"error": 1.0, "status": 404}, expected="error"),
]


def one_epoch(uri: str, config: dict[str, str], deadline_s: float) -> None:
    """Run an epoch, and print a record: digests of the minibatches, the error, seconds, retries.

    After the first minibatch it prints "begun", and waits for a line on stdin.
    """
    dataset = remote.open_dataset(uri, config, retry_deadline_s=deadline_s)
    digests: list[str] = []
    error = None
    started = time.perf_counter()
    try:
        for X, obs in dataset:
            digests.append(digest(X, obs))
            if len(digests) == 1:
                print("begun", flush=True)
                sys.stdin.readline()
                started = time.perf_counter()
            time.sleep(0.03)  # a training loop
    except cellfeed.CellfeedError as caught:
        error = f"{type(caught).__name__}: {caught}"
    seconds = time.perf_counter() - started
    print(json.dumps({"digests": digests, "error": error, "seconds": seconds, "retries": dataset.stats().n_retries}))


def digest(X: Any, obs: Any) -> str:
    """Return a hash of a minibatch: of the values of X, their places, the joinids, and their order."""
    parts = (X.crow_indices(), X.col_indices(), X.values(), obs)
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()[:16]


def attempt(trial: Trial, path: str, uri: str, proxy: ProxyProcess) -> dict[str, Any]:
    """Run one epoch under one fault in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.faults", "epoch", uri, json.dumps(object_settings(proxy.endpoint))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    proxy.set()
    process = subprocess.Popen([*command, str(trial.deadline_s)], env=environment(**READING_PATHS[path]), **pipes)
    timers = [threading.Timer(PATIENCE_S, process.kill)]
    if trial.seconds is not None:
        timers.append(threading.Timer(trial.seconds, proxy.set))
    if process.stdout.readline() == "begun\n":
        proxy.set(**trial.faults)
    before = proxy.counts
    for timer in timers:
        timer.start()
    out, err = process.communicate("\n")
    for timer in timers:
        timer.cancel()
        timer.join()
    struck = {name: n - before.get(name, 0) for name, n in proxy.counts.items()}
    came = json.loads(out.splitlines()[-1]) if out else {"digests": [], "error": None, "seconds": None, "retries": None}
    died = f"the process ended with {process.returncode}: {err[-500:]}" if process.returncode else None
    return {**came, "died": died, "proxy": struck}


def outcome(record: dict[str, Any], undisturbed: list[str]) -> str:
    """Classify an epoch; minibatches before an error must be right as well."""
    digests = record["digests"]
    if digests != undisturbed[: len(digests)]:
        return "wrong cells"
    if record["died"] is not None:
        return "died"
    if record["error"] is not None:
        return "error"
    return "exact" if digests == undisturbed else "cells missing"


def table(
    out: Path | None,
    *,
    names: Sequence[str] | None = None,
    paths: Sequence[str] = tuple(READING_PATHS),
    n_obs: int = remote.N_OBS,
) -> list[dict[str, Any]]:
    """Try each fault with each way of reading."""
    records = []
    about = {"commit": commit(), "cores": os.cpu_count(), "versions": versions(PACKAGES), "n_obs": n_obs}
    with tempfile.TemporaryDirectory() as folder, s3_server() as s3, ProxyProcess(s3.endpoint) as proxy:
        uri = s3.upload(remote.write(folder, n_obs))
        undisturbed = attempt(TRIALS[0], "public", uri, proxy)["digests"]
        for trial in TRIALS:
            for path in paths if names is None or trial.name in names else ():
                came = attempt(trial, path, uri, proxy)
                came = {"outcome": outcome(came, undisturbed), "minibatches": len(came.pop("digests")), **came}
                records.append({**about, "path": path, **asdict(trial), **came})
                print(f"{trial.name}, {path}: {shown(records[-1])}", flush=True)
                append(out, records[-1])
    return records


def markdown(records: list[dict[str, Any]]) -> str:
    """One row for each fault, one column for each way of reading."""
    lines = [f"| fault | {' | '.join(READING_PATHS)} |", "|---" * (len(READING_PATHS) + 1) + "|"]
    for name in dict.fromkeys(record["name"] for record in records):
        cells = {r["path"]: shown(r) for r in records if r["name"] == name}
        lines.append(f"| {name} | {' | '.join(cells.get(path, '') for path in READING_PATHS)} |")
    return "\n".join(lines)


def shown(record: dict[str, Any]) -> str:
    mark = "" if record["outcome"] == record["expected"] else "**!** "
    retries = f", {record['retries']} retries" if record["retries"] else ""
    seconds = "" if record["seconds"] is None else f", {record['seconds']:.1f} s"
    return f"{mark}{record['outcome']}{seconds}{retries}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    an_epoch = commands.add_parser("epoch", help="one epoch; the table starts it")
    for name, kind in {"uri": str, "config": json.loads, "deadline_s": float}.items():
        an_epoch.add_argument(name, type=kind)
    a_table = commands.add_parser("table", help="each fault with each way of reading")
    a_table.add_argument("--only", action="append", dest="names", metavar="FAULT", help="default: all")
    a_table.add_argument("--path", action="append", dest="paths", choices=READING_PATHS, help="default: all")
    a_table.add_argument("--out", type=Path, help="append records here, a JSON line each")
    options = parser.parse_args()
    if options.command == "epoch":
        one_epoch(options.uri, options.config, options.deadline_s)
    else:
        records = table(options.out, names=options.names, paths=options.paths or tuple(READING_PATHS))
        print(f"\n{markdown(records)}")


if __name__ == "__main__":
    main()
