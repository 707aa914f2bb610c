"""The speed of joins beside that of their datasets.

    python -m benchmarks.joins census_32k.soma census_64k.zarr

The two stores have common genes. Each of the joins takes turns with its two datasets in one process. A join is compared
with the mean of its datasets, weighted by their cells: the time of one epoch of each, over that of one of the join. The
seconds of all cores are compared, too: other processes hardly change them. With ``orthologs``, all genes of the second
dataset get the names of others, as those of another species, so that the columns of its rows are permuted. Such a join
is compared with datasets in the order of the store, and, by ``select_genes``, with those in its own order.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

import cellfeed
from benchmarks.content import epoch_of

Way = tuple[dict[str, Any], bool]
"""The parameters of the datasets, and whether the genes of the second one get other names."""


def ways(genes: list[str]) -> dict[str, Way]:
    """Return the joins that are compared, by their names."""
    from cellfeed.tokens import TopKTokens, Vocabulary

    vocabulary = Vocabulary({"<pad>": 0} | {gene: k for k, gene in enumerate(genes, 1)})
    return {
        "CSR": ({"return_sparse_X": True}, False),
        "CSR, orthologs": ({"return_sparse_X": True}, True),
        "CSR, orthologs, selected": ({"return_sparse_X": True}, True),
        "dense": ({}, False),
        "dense, orthologs": ({}, True),
        "dense, orthologs, selected": ({}, True),
        "tokens, 2,048": ({"transform": TopKTokens(vocabulary, max_length=2048)}, False),
    }


def measure(stores: list[str], batch_size: int, n_passes: int) -> Iterator[str]:
    """Yield a line for each join: medians and ranges over several epochs."""
    genes = [list(cellfeed.ExperimentDataset(store).gene_names()) for store in stores]
    others = list(np.random.default_rng(0).permutation(genes[1]))
    for name, (parameters, is_renamed) in ways(genes[0]).items():
        datasets = {
            key: cellfeed.ExperimentDataset(store, batch_size=batch_size, seed=0, memory_budget="1 GiB", **parameters)
            for key, store in zip("ab", stores, strict=True)
        }
        orthologs: Mapping[str, Mapping[str, str]] = (
            {"b": dict(zip(genes[1], others, strict=True))} if is_renamed else {}
        )
        joined = cellfeed.join(datasets, orthologs=orthologs)
        alone = list(datasets.values())
        if name.endswith("selected"):
            named = dict(zip(others, genes[1], strict=True))
            alone[1] = alone[1].select_genes([named[gene] for gene in joined.gene_names()])
        figures = []
        for _ in range(n_passes + 1):
            epochs = np.array([epoch_of(each) for each in (*alone, joined)])  # cells, seconds, CPU seconds
            assert epochs[:2, 0].sum() == epochs[2, 0]
            figures.append((epochs[2, 0] / epochs[2, 1], *(epochs[:2, 1:].sum(axis=0) / epochs[2, 1:])))
        rates, by_time, by_cpu = np.array(figures[1:]).T
        yield (
            f"{name:26} {np.median(rates):9,.0f} cells/s, {np.median(by_time):.2f} ({by_time.min():.2f} to "
            f"{by_time.max():.2f}) of the datasets by time, {np.median(by_cpu):.2f} by seconds of all cores"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", nargs=2)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--passes", type=int, default=3)
    options = parser.parse_args()
    for line in measure(options.stores, options.batch_size, options.passes):
        print(line, flush=True)


if __name__ == "__main__":
    main()
