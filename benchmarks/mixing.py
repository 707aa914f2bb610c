"""Mixing of cells: predicted against delivered, slices against double-buffered blocks, and its cost.

python -m benchmarks.mixing predicted small.soma --out benchmarks/results/mixing.jsonl   # writes the store first
python -m benchmarks.mixing equal
python -m benchmarks.mixing cost census_131k.soma --out benchmarks/results/mixing_cost.jsonl
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.contenders import Case
from benchmarks.harness.records import append, commit
from benchmarks.harness.run import PASSES, run_once
from benchmarks.harness.stores import StoreSpec, write_store
from cellfeed import ExperimentDataset
from cellfeed.plan.effective_batch_size import Composition, expected_batch_size
from cellfeed.plan.epoch import EpochOrder, chunk_bounds
from cellfeed.plan.schedule import ShufflePlan, best_shuffle_plan
from cellfeed.plan.windows import ShardWindows

LABEL = "dataset_id"
SMALL = StoreSpec(n_obs=262_144, n_vars=500, nnz_per_cell=20, n_expressed=500, n_datasets=40)


def settings() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield names and parameters: chunks, windows, budgets, targets, batch sizes."""
    for batch_size in (64, 256, 1024):
        for budget in ("8 MB", "16 MB", "32 MB"):
            yield f"own plan, {budget}", {"memory_budget": budget, "batch_size": batch_size}
        for size, count in ((64, 100), (64, 500), (256, 40), (2048, 10)):
            yield (
                f"blocks of {count} x {size}",
                {
                    "soma_chunk_size": size,
                    "shuffle_chunk_count": count,
                    "batch_size": batch_size,
                },
            )
        yield "chunks of 512, 16 MB", {"soma_chunk_size": 512, "memory_budget": "16 MB", "batch_size": batch_size}
    for mixing in (0.3, 0.6, 0.9):
        yield f"mixing={mixing}", {"mixing": mixing, "memory_budget": "32 MB", "batch_size": 128}
    yield "in order", {"shuffle": False, "batch_size": 128}


def cases(uri: str) -> Iterator[tuple[str, ExperimentDataset]]:
    """Yield datasets: whole and scattered selections, splits, ranks."""
    import tiledbsoma as soma

    common: dict[str, Any] = {"obs_column_names": [LABEL], "seed": 0, "return_sparse_X": True}
    for name, parameters in settings():
        yield name, ExperimentDataset(uri, **common, **parameters)
    third = soma.AxisQuery(coords=(np.flatnonzero(np.random.default_rng(0).random(SMALL.n_obs) < 0.33),))
    for batch_size in (64, 512):
        own: dict[str, Any] = {**common, "memory_budget": "12 MB", "batch_size": batch_size}
        yield "a third of the cells, scattered", ExperimentDataset(uri, obs_query=third, **own)
        train, test = ExperimentDataset(uri, **own).random_split([0.8, 0.2], stratify=LABEL)
        yield "stratified split, 0.8", train
        yield "stratified split, 0.2", test
        for rank in (0, 3):
            yield f"rank {rank} of 4", ExperimentDataset(uri, rank=rank, world_size=4, **own)


def predicted(uri: str, out: Path | None, n_epochs: int) -> None:
    """Print the predicted and the delivered effective batch size of each setting."""
    if not Path(uri).exists():
        write_store(uri, SMALL)
    errors = []
    for name, dataset in cases(uri):
        inverse = []
        for epoch in range(n_epochs):
            dataset.set_epoch(epoch)
            inverse.append(1 / dataset.plan(label=LABEL).effective_batch_size)  # variances add up, and they are inverse
            for _ in dataset:
                pass
        forecast, delivered = 1 / statistics.mean(inverse), dataset.stats().effective_batch_sizes[LABEL]
        errors.append(forecast / delivered - 1)
        batch_size = dataset.plan().batch_size
        record = {"case": name, "batch_size": batch_size, "predicted": forecast, "delivered": delivered}
        print(f"{name:34} B {batch_size:5} predicted {forecast:7.1f} delivered {delivered:7.1f} {errors[-1]:+.1%}")
        _save(out, record)
    print(f"{len(errors)} settings, largest difference {max(map(abs, errors)):.1%}")


def equal() -> None:
    """Print the effective batch size of slices and of double-buffered blocks in the same memory."""
    for room in (64, 128, 256, 512, 1024):
        found = {}
        for name, mixing in (("slices", best_shuffle_plan(room, prefetch=True)), ("blocks", ShufflePlan(room // 2))):
            plan = EpochOrder(chunk_bounds(64 * room * 40, 64), 0, 0, True, 1024, mixing)
            found[name] = expected_batch_size(
                ShardWindows(plan, 0, plan.n_cells), 1024, Composition.worst_case(plan.bounds)
            )
        ratio = found["slices"] / found["blocks"]
        print(f"{room:5} chunks: {found['slices']:.0f} against {found['blocks']:.0f}, {ratio:.2f} x")


def cost(uri: str, out: Path | None, repeats: int) -> None:
    """Print rates with and without shuffling, in turn and each in its own process; and the gaps of a slow consumer."""
    for sparse in (True, False):
        case = Case(uri, sparse=sparse, passes=PASSES)
        rates: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(repeats):
            for shuffle, taken in rates.items():
                record = run_once("", "cellfeed", replace(case, options={"shuffle": shuffle}), Path())
                assert record is not None  # cellfeed is here
                taken += [one["cells_per_s"] for one in record["passes"][1:]]  # the first epoch allocates memory
        rate = {shuffle: statistics.median(taken) for shuffle, taken in rates.items()}
        dataset = ExperimentDataset(uri, batch_size=1024, seed=0, return_sparse_X=sparse)
        gaps = _gaps(dataset, pause_s=2 * 1024 / rate[True])
        gap, longest = statistics.median(gaps), max(gaps)
        print(
            f"{'sparse' if sparse else 'dense'}: {rate[True]:,.0f} cells/s shuffled, {rate[False]:,.0f} in order: "
            f"{rate[True] / rate[False]:.3f}; gaps of a consumer of half the rate: {gap * 1e3:.0f} ms, at most "
            f"{longest / gap:.1f} times that"
        )
        figures = {"in_order": rates[False], "shuffled": rates[True], "median_gap_s": gap, "longest_gap_s": longest}
        _save(out, {"sparse": sparse, **figures})


def _gaps(dataset: ExperimentDataset, pause_s: float) -> list[float]:
    """Seconds from one minibatch to the next, after the first tenth of an epoch."""
    gaps, last = [], time.perf_counter()
    for _ in dataset:
        now = time.perf_counter()
        gaps.append(now - last)
        last = now
        time.sleep(pause_s)
    return gaps[len(gaps) // 10 :]


def _save(out: Path | None, record: dict[str, Any]) -> None:
    append(out, {"commit": commit(), **record})


def main() -> None:
    """Run one of the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("predicted", "equal", "cost"))
    parser.add_argument("uri", nargs="?")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=6, help="epochs, or epochs of each")
    options = parser.parse_args()
    if options.what == "equal":
        equal()
    elif options.uri is None:
        parser.error(f"{options.what} needs the path of a store")
    else:
        (predicted if options.what == "predicted" else cost)(options.uri, options.out, options.repeats)


if __name__ == "__main__":
    main()
