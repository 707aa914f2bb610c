"""Feed a GPU: the ceilings of the machine, the rate of minibatches on the device, and how long a model waits for them.

    python -m benchmarks.gpu stores --out benchmarks/results/gpu.jsonl
    python -m benchmarks.gpu stores --device cpu

The script writes a store like a Census, a local copy that has each of its cells several times, and annbatch's own
collection, to the folder if they are not there. annbatch moves rows to the GPU before it shuffles them
(``preload_to_gpu``); minibatches of tiledbsoma-ml are moved. Peers that are not installed are left out. ``device=`` is
``experiment_dataloader(dataset, device=...)``; ``to`` moves the minibatches of a loader without a device; ``host`` is
the work of the CPU alone: it makes them on PyTorch's device "meta", which has no values. Rates are those of epochs
after the first, and the device has finished its work when a clock is read.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness.contenders import PACKAGES
from benchmarks.harness.devices import (
    Step,
    make_dataset,
    minibatches,
    peers,
    perceptron,
    scvi,
    sleeper,
    write_stores,
)
from benchmarks.harness.records import append, commit, processor, versions
from benchmarks.harness.stores import StoreSpec
from cellfeed import ExperimentDataset
from cellfeed.rows.compact import CompactRows
from cellfeed.transforms import Compose, Log1p, NormalizeTotal

SPEC = StoreSpec(n_obs=65_536)
SOME_GENES = 8000
BATCH_SIZE = 1024
N_COPIES = 8
"""Number of times that the local copy has each cell: an epoch of a fast loader must take a second or more."""

SECONDS = 4.0
"""Least time for which a rate is measured."""


def finish(device: torch.device) -> None:
    """Wait until the device has done all work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], Any], device: torch.device, repeat: int = 20) -> float:
    """Return the mean time of some work on a device, after one call that is not counted."""
    work()
    finish(device)
    started = time.perf_counter()
    for _ in range(repeat):
        work()
    finish(device)
    return (time.perf_counter() - started) / repeat


def ceilings(device: torch.device, n_bytes: int = 1 << 28) -> Iterator[dict[str, Any]]:
    """Yield the rates of a copy of pinned memory to the device, and of filling its memory."""
    source = torch.ones(n_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
    target = torch.empty(n_bytes, dtype=torch.uint8, device=device)
    copy_s = seconds_of(lambda: target.copy_(source, non_blocking=True), device)
    fill_s = seconds_of(target.zero_, device)
    yield {"part": "copy of pinned memory", "bytes_per_s": n_bytes / copy_s}
    yield {"part": "fill of device memory", "bytes_per_s": n_bytes / fill_s}


def expansions(device: torch.device, spec: StoreSpec, batch_size: int) -> Iterator[dict[str, Any]]:
    """Yield the time of the operations on the device for a minibatch of compact rows."""
    n = min(spec.nnz_per_cell, spec.n_vars)
    columns = torch.stack([torch.randperm(spec.n_vars)[:n].sort().values for _ in range(batch_size)])
    rows = CompactRows(
        (torch.arange(batch_size + 1) * n).to(device, torch.int32),
        columns.view(-1).to(torch.uint16).to(device),
        torch.ones(batch_size * n, dtype=torch.uint8, device=device),
    )
    scaling = Compose(NormalizeTotal(1e4), Log1p())
    ways: dict[str, Callable[[], Any]] = {
        "dense": lambda: fresh(rows).dense(spec.n_vars, torch.float32),
        "CSR": lambda: fresh(rows).csr(spec.n_vars, torch.float32),
        "CSR, library size and logarithm": lambda: scaling.apply_(fresh(rows).csr(spec.n_vars, torch.float32)),
    }
    for way, work in ways.items():
        yield {"part": f"expansion: {way}", "s_per_minibatch": seconds_of(work, device, repeat=5)}


def fresh(rows: CompactRows) -> CompactRows:
    """Return rows that remember nothing of an earlier expansion."""
    return CompactRows(rows.offsets, rows.columns, rows.values)


def rate(epoch: Callable[[], Iterator[torch.Tensor]], device: torch.device, seconds: float) -> float:
    """Return the cells per second of epochs after the first, which compiles and allocates."""
    cells, elapsed, n_epochs = 0, 0.0, 0
    while elapsed <= seconds or n_epochs < 2:
        started = time.perf_counter()
        n = sum(X.shape[0] for X in epoch())
        finish(device)
        if n_epochs:
            cells, elapsed = cells + n, elapsed + time.perf_counter() - started
        n_epochs += 1
    return cells / elapsed


def rates(
    sources: dict[str, str], n_genes: int, batch_size: int, device: torch.device, seconds: float
) -> Iterator[dict[str, Any]]:
    """Yield the cells per second of each source, layout and way, and of the peers that are installed."""
    for sparse in (False, True):
        layout = "CSR" if sparse else "dense"
        for genes in (None, n_genes):
            extent = "all genes" if genes is None else f"{genes:,} genes"
            for source in ("copy", "SOMA"):
                for way in ("device=", "to", "host"):
                    dataset = make_dataset(sources[source], genes, batch_size, sparse)
                    cells_per_s = rate(partial(minibatches, dataset, way, device), device, seconds)
                    yield {"part": f"{source}, {layout}, {extent}, {way}", "cells_per_s": cells_per_s}
        for name, epoch in peers(sources, batch_size, sparse, device):
            yield {"part": f"{name}, {layout}, all genes", "cells_per_s": rate(epoch, device, seconds)}


def waits(path: str, n_genes: int, batch_size: int, device: torch.device) -> Iterator[dict[str, Any]]:
    """Yield the share of its time that a consumer waits: models in training, and a step of 10 ms."""
    consumers: dict[str, Callable[[int], Step]] = {
        "perceptron": lambda n_vars: perceptron(n_vars, device),
        "step of 10 ms": lambda n_vars: sleeper(0.01),
    }
    if find_spec("scvi"):
        consumers["scVI"] = lambda n_vars: scvi(n_vars, device)
    for genes in (None, n_genes):
        for name, make in consumers.items():
            for way in ("device=", "to"):
                dataset = make_dataset(path, genes, batch_size, sparse=False)
                figures = waiting(dataset, make(dataset.shape[1]), way, device)
                yield {"part": f"{name}, {dataset.shape[1]:,} genes, {way}", **figures}


def waiting(dataset: ExperimentDataset, step: Step, way: str, device: torch.device) -> dict[str, float]:
    """Return the shares of its time that a consumer waits, and that it works, in an epoch after its first minibatch."""
    step_s, gaps = 0.0, []
    left = time.perf_counter()
    for X in minibatches(dataset, way, device):
        started = time.perf_counter()
        gaps.append(started - left)
        step(X)
        finish(device)
        left = time.perf_counter()
        step_s += left - started
    waited_s = sum(gaps[1:])
    return {
        "waits": waited_s / (waited_s + step_s),
        "s_per_step": step_s / len(gaps),
        "tail_s": float(np.quantile(gaps[1:], 0.999)),
    }


UNITS: dict[str, Callable[[float], str]] = {
    "bytes_per_s": lambda value: f"{value / 1e9:8.1f} GB/s",
    "s_per_minibatch": lambda value: f"{value * 1e3:8.2f} ms for each minibatch",
    "cells_per_s": lambda value: f"{value:8,.0f} cells/s",
    "waits": lambda value: f"{value:8.1%} of the time waited",
    "s_per_step": lambda value: f"{value * 1e3:.1f} ms for each step",
    "tail_s": lambda value: f"gap of {value * 1e3:.1f} ms at most for 99.9 %",
}


def run(
    folder: Path,
    device: torch.device,
    out: Path | None = None,
    *,
    spec: StoreSpec = SPEC,
    n_copies: int = N_COPIES,
    n_genes: int = SOME_GENES,
    batch_size: int = BATCH_SIZE,
    seconds: float = SECONDS,
) -> Iterator[str]:
    """Measure all, append one record for the machine, and yield the lines of the table."""
    sources, parts = write_stores(folder, spec, n_copies), []
    measured = (
        ceilings(device),
        expansions(device, spec, batch_size),
        rates(sources, n_genes, batch_size, device, seconds),
        waits(sources["copy"], n_genes, batch_size, device),
    )
    for group in measured:
        for part in group:
            parts.append(part)
            figures = (unit(part[name]) for name, unit in UNITS.items() if name in part)
            yield f"{part['part']:44} {', '.join(figures)}"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    record = {"device": name, "processor": processor(), "commit": commit(), "versions": versions(PACKAGES)}
    append(out, {**record, "batch_size": batch_size, "n_obs": spec.n_obs, "n_copies": n_copies, "parts": parts})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--n-obs", type=int, default=SPEC.n_obs)
    parser.add_argument("--n-copies", type=int, default=N_COPIES)
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    given = parser.parse_args()
    spec = StoreSpec(n_obs=given.n_obs)
    options: dict[str, Any] = {
        "spec": spec, "n_copies": given.n_copies, "batch_size": given.batch_size, "seconds": given.seconds
    }  # fmt: skip
    for line in run(given.folder, given.device, given.out, **options):
        print(line, flush=True)


if __name__ == "__main__":
    main()
