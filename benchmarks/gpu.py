"""Feed a GPU: the ceilings of the machine, the rate of minibatches on the device, and how long a model waits for them.

    python -m benchmarks.gpu stores --out benchmarks/results/gpu.jsonl
    python -m benchmarks.gpu stores --device cpu

The script writes a store like a Census, and a local copy of it, to the folder if they are not there. ``device=`` is
``experiment_dataloader(dataset, device=...)``; ``to`` moves the minibatches of a loader without a device; ``host`` is
the work of the CPU alone: it makes them on PyTorch's device "meta", which has no values. Rates are those of epochs
after the first, and the device has finished its work when a clock is read.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tiledbsoma as soma
import torch

from benchmarks.harness.contenders import PACKAGES
from benchmarks.harness.records import append, commit, processor, versions
from benchmarks.harness.stores import StoreSpec, write_store
from cellfeed import ExperimentDataset, experiment_dataloader
from cellfeed.rows.compact import CompactRows
from cellfeed.transforms import Compose, Log1p, NormalizeTotal

SPEC = StoreSpec(n_obs=65_536)
SOME_GENES = 8000
BATCH_SIZE = 1024
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


def write_stores(folder: Path, spec: StoreSpec) -> dict[str, str]:
    """Write the experiment and its copy, unless they are there; return their paths by the kind of source."""
    uri, copy = folder / f"census_{spec.n_obs}.soma", folder / f"census_{spec.n_obs}.zarr"
    folder.mkdir(parents=True, exist_ok=True)
    if not uri.exists():
        write_store(str(uri), spec)
    if not copy.exists():
        ExperimentDataset(str(uri), seed=0).write_copy(copy)
    return {"copy": str(copy), "SOMA": str(uri)}


def make_dataset(path: str, n_genes: int | None, batch_size: int, sparse: bool) -> ExperimentDataset:
    genes = None if n_genes is None else soma.AxisQuery(coords=(slice(0, n_genes - 1),))
    return ExperimentDataset(path, var_query=genes, batch_size=batch_size, seed=0, return_sparse_X=sparse)


def minibatches(dataset: ExperimentDataset, way: str, device: torch.device) -> Iterator[Any]:
    """Yield an epoch of minibatches on the device, in one of three ways."""
    if way == "to":
        return (minibatch.to(device) for minibatch in experiment_dataloader(dataset))
    return iter(experiment_dataloader(dataset, device="meta" if way == "host" else device))


def rates(
    sources: dict[str, str], n_genes: int, batch_size: int, device: torch.device, seconds: float
) -> Iterator[dict[str, Any]]:
    """Yield the cells per second of each source, layout and way."""
    for source, path in sources.items():
        for sparse in (False, True):
            for genes in (None, n_genes):
                for way in ("device=", "to", "host"):
                    dataset = make_dataset(path, genes, batch_size, sparse)
                    cells, elapsed = 0, 0.0
                    for epoch in range(1 << 30):
                        started = time.perf_counter()
                        n = sum(len(minibatch.obs) for minibatch in minibatches(dataset, way, device))
                        finish(device)
                        if epoch:
                            cells, elapsed = cells + n, elapsed + time.perf_counter() - started
                        if elapsed > seconds:
                            break
                    layout = f"{'CSR' if sparse else 'dense'}, {'all' if genes is None else f'{genes:,}'} genes"
                    yield {"part": f"{source}, {layout}, {way}", "cells_per_s": cells / elapsed}


def waits(path: str, n_genes: int, batch_size: int, device: torch.device) -> Iterator[dict[str, Any]]:
    """Yield the share of its time that the training of a perceptron waits, and the time of its step."""
    for genes in (None, n_genes):
        for way in ("device=", "to"):
            dataset = make_dataset(path, genes, batch_size, sparse=False)
            model = torch.nn.Sequential(
                torch.nn.Linear(dataset.shape[1], 1024), torch.nn.ReLU(),
                torch.nn.Linear(1024, 512), torch.nn.ReLU(), torch.nn.Linear(512, 10),
            ).to(device)  # fmt: skip
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
            step_s, n_steps = 0.0, 0
            for X, _ in minibatches(dataset, way, device):
                started = time.perf_counter()
                optimizer.zero_grad()
                model(X.log1p()).logsumexp(1).mean().backward()
                optimizer.step()
                finish(device)
                step_s, n_steps = step_s + time.perf_counter() - started, n_steps + 1
            yield {
                "part": f"perceptron, {dataset.shape[1]:,} genes, {way}",
                "waits": dataset.stats().waiting_fraction,
                "s_per_step": step_s / n_steps,
            }


UNITS: dict[str, Callable[[float], str]] = {
    "bytes_per_s": lambda value: f"{value / 1e9:8.1f} GB/s",
    "s_per_minibatch": lambda value: f"{value * 1e3:8.2f} ms for each minibatch",
    "cells_per_s": lambda value: f"{value:8,.0f} cells/s",
    "waits": lambda value: f"{value:8.1%} of the time waited",
    "s_per_step": lambda value: f"{value * 1e3:.1f} ms for each step",
}


def run(
    folder: Path,
    device: torch.device,
    out: Path | None = None,
    *,
    spec: StoreSpec = SPEC,
    n_genes: int = SOME_GENES,
    batch_size: int = BATCH_SIZE,
    seconds: float = SECONDS,
) -> Iterator[str]:
    """Measure all, append one record for the machine, and yield the lines of the table."""
    sources, parts = write_stores(folder, spec), []
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
    append(out, {**record, "batch_size": batch_size, "n_obs": spec.n_obs, "parts": parts})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--n-obs", type=int, default=SPEC.n_obs)
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    given = parser.parse_args()
    spec = StoreSpec(n_obs=given.n_obs)
    options: dict[str, Any] = {"spec": spec, "batch_size": given.batch_size, "seconds": given.seconds}
    for line in run(given.folder, given.device, given.out, **options):
        print(line, flush=True)


if __name__ == "__main__":
    main()
