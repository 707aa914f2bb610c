"""The speed of sets of cells with matched controls beside that of shuffled cells, of the same 2,000 genes.

    python -m benchmarks.sets census_64k.zarr --column cell_type

The first epoch reads the cells, and later ones take them from memory. The seconds of all cores are quoted beside the
cells per second: other processes hardly change them. Controls are the cells of the first label of the column.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from cellfeed import ExperimentDataset

N_GENES = 2000


def epoch_of(minibatches: Iterable[Any], *, of_sets: bool) -> str:
    """Iterate over an epoch, and return its cells per second; controls count."""
    started, started_cpu = time.perf_counter(), time.process_time()
    n_cells = sum(2 * minibatch.mask.numel() if of_sets else len(minibatch.X) for minibatch in minibatches)
    seconds, cpu = time.perf_counter() - started, time.process_time() - started_cpu
    return f"{n_cells / seconds:9,.0f} cells/s, {1e6 * cpu / n_cells:6.1f} us of a core for each cell"


def measure(source: str, column: str, set_size: int, n_passes: int) -> Iterator[str]:
    """Yield a line for each epoch."""
    whole = ExperimentDataset(source, obs_column_names=[column], batch_size=1024, seed=0)
    names = whole.gene_names()
    chosen = np.random.default_rng(0).choice(len(names), min(N_GENES, len(names)), replace=False)
    dataset = whole.select_genes(names[np.sort(chosen)].tolist())
    control = dataset.obs_encoders[column].classes_[0]
    sets = dataset.group_batches(by=column, set_size=set_size, control=control, few_controls="repeat")
    yield str(sets.plan())
    for epoch in range(n_passes):
        yield f"sets, epoch {epoch}   {epoch_of(sets, of_sets=True)}"
        yield f"cells, epoch {epoch}  {epoch_of(dataset, of_sets=False)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--column", default="cell_type")
    parser.add_argument("--set-size", type=int, default=64)
    parser.add_argument("--passes", type=int, default=3)
    options = parser.parse_args()
    for line in measure(options.source, options.column, options.set_size, options.passes):
        print(line, flush=True)


if __name__ == "__main__":
    main()
