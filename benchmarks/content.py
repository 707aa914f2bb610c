"""The cost of resampling, and of further content of minibatches, beside that of X alone.

    python -m benchmarks.content census_131k.soma
    python -m benchmarks.content census_131k.zarr --layer layers/counts

The ways take turns in one process. The seconds of all cores are quoted beside the cells per second: other processes
hardly change them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import numpy as np

from cellfeed import ExperimentDataset

N_LABELS = 120

RARE = 4e-5
"""Frequency of the rarest label relative to that of the most frequent one."""


def balancing_weights(n_obs: int, batch_size: int) -> np.ndarray:
    """Return weights that give equal shares to labels whose frequencies span more than four orders of magnitude.

    A label has at least the cells for its share of a minibatch, as a minibatch has a cell once.
    """
    frequencies = np.geomspace(RARE, 1, N_LABELS)
    sizes = np.maximum(frequencies / frequencies.sum() * n_obs, 1 + batch_size / N_LABELS).astype(np.int64)
    sizes[-1] = n_obs - sizes[:-1].sum()
    weights: np.ndarray = np.random.default_rng(0).permutation(np.repeat(1 / sizes, sizes))
    return weights


def epoch_of(dataset: ExperimentDataset) -> tuple[int, float, float]:
    """Return the cells, the seconds, and the CPU seconds of all cores of an epoch."""
    started, started_cpu = time.perf_counter(), time.process_time()
    n_cells = sum(len(minibatch.obs) for minibatch in dataset)
    return n_cells, time.perf_counter() - started, time.process_time() - started_cpu


def measure(source: str, layer: str | None, batch_size: int, n_passes: int) -> Iterator[str]:
    """Yield a line for each way: medians over several epochs."""
    plain = ExperimentDataset(source, batch_size=batch_size, seed=0, return_sparse_X=True)
    ways = {"X alone": plain, "balanced": plain.resample(weights=balancing_weights(plain.shape[0], batch_size))}
    if layer is not None:
        ways["two layers"] = ExperimentDataset(
            source, layers=[layer], batch_size=batch_size, seed=0, return_sparse_X=True
        )
    epochs = [{way: epoch_of(dataset) for way, dataset in ways.items()} for _ in range(n_passes + 1)][1:]
    for way in ways:
        n_cells, seconds, cpu = np.array([epoch[way] for epoch in epochs]).T
        n_alone, seconds_alone, cpu_alone = np.array([epoch["X alone"] for epoch in epochs]).T
        rate, ratio = np.median(n_cells / seconds), np.median(n_cells / seconds / (n_alone / seconds_alone))
        cost, cpu_ratio = np.median(1e6 * cpu / n_cells), np.median(cpu_alone / n_alone / (cpu / n_cells))
        yield f"{way:10} {rate:9,.0f} cells/s ({ratio:.2f}) {cost:6.1f} us of a core for each cell ({cpu_ratio:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--layer")
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--passes", type=int, default=5)
    options = parser.parse_args()
    for line in measure(options.source, options.layer, options.batch_size, options.passes):
        print(line)


if __name__ == "__main__":
    main()
