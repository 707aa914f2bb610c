"""The cost of normalisation and logarithm: left out, fused with the copy of the values, and as separate steps.

    python -m benchmarks.transforms census_131k.soma

The seconds of all cores are quoted: other processes hardly change them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

import tiledbsoma as soma
import torch

from cellfeed import ExperimentDataset
from cellfeed.transforms import Compose, Log1p, NormalizeTotal

SCALED = Compose([NormalizeTotal(1e4), Log1p()])


def separately(X: torch.Tensor) -> torch.Tensor:
    """Compute the same as ``SCALED`` in a callable that the loader cannot fuse with the copy."""
    return SCALED.apply_(X)


WAYS: dict[str, Callable | None] = {"none": None, "in the copy": SCALED, "separate": separately}


def core_seconds(dataset: ExperimentDataset) -> float:
    """Return the CPU seconds of an epoch, summed over all cores."""
    started = time.process_time()
    for _ in dataset:
        pass
    return time.process_time() - started


def measure(uri: str, n_vars: int, batch_size: int, n_passes: int) -> Iterator[str]:
    """Yield a line for each way: the least CPU time per cell over several epochs, in which the ways take turns."""
    genes = soma.AxisQuery(coords=(slice(0, n_vars - 1),))
    for sparse in (False, True):
        datasets = {
            way: ExperimentDataset(
                uri, var_query=genes, batch_size=batch_size, seed=0, return_sparse_X=sparse, transform=transform
            )
            for way, transform in WAYS.items()
        }
        passes = [{way: core_seconds(dataset) for way, dataset in datasets.items()} for _ in range(n_passes + 1)]
        for way, dataset in datasets.items():
            least = min(seconds[way] for seconds in passes[1:])  # the first compiles
            layout = "CSR" if sparse else "dense"
            yield f"{layout:5} {way:11} {1e6 * least / dataset.shape[0]:6.1f} us of a core for each cell"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("uri")
    parser.add_argument("--n-vars", type=int, default=8000)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--n-passes", type=int, default=5)
    arguments = parser.parse_args()
    for line in measure(arguments.uri, arguments.n_vars, arguments.batch_size, arguments.n_passes):
        print(line, flush=True)


if __name__ == "__main__":
    main()
