"""The speed of tokens beside that of CSR minibatches.

    python -m benchmarks.tokens census_64k.soma census_64k.zarr

The ways take turns in one process. The seconds of all cores are quoted beside the cells per second: other processes
hardly change them. Medians of genes are random numbers, so that ranks are those of no model.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np

from benchmarks.content import epoch_of
from cellfeed import ExperimentDataset
from cellfeed.tokens import BinnedTokens, RankTokens, SampledTokens, Tokenizer, TopKTokens, Vocabulary


def tokenizers(genes: list[str]) -> dict[str, Tokenizer]:
    """Return the kinds of tokens by the name of the way, with the lengths that models have."""
    vocabulary = Vocabulary({"<pad>": 0, "<cls>": 1} | {gene: k for k, gene in enumerate(genes, 2)}, cls_token="<cls>")
    medians = dict(zip(genes, np.exp(np.random.default_rng(0).normal(0, 1, len(genes))), strict=True))
    return {
        "ranks, 2,048": RankTokens(vocabulary, medians, max_length=2048),
        "bins, 1,200": BinnedTokens(vocabulary, max_length=1200),
        "bins, 1,200, random": BinnedTokens(vocabulary, max_length=1200, choice="random"),
        "bins, all": BinnedTokens(vocabulary, max_length=4096, padding="longest"),
        "values, 2,048": TopKTokens(vocabulary, max_length=2048),
        "draws, 1,024": SampledTokens(vocabulary, max_length=1024),
    }


def measure(source: str, batch_size: int, n_passes: int) -> Iterator[str]:
    """Yield a line for each way: medians and ranges over several epochs."""
    plain = ExperimentDataset(source, batch_size=batch_size, seed=0, return_sparse_X=True)
    ways = {"CSR": plain}
    for name, tokenizer in tokenizers(plain.gene_names()).items():
        ways[name] = ExperimentDataset(source, batch_size=batch_size, seed=0, transform=tokenizer)
    epochs = [{way: epoch_of(dataset) for way, dataset in ways.items()} for _ in range(n_passes + 1)][1:]
    for way in ways:
        n_cells, seconds, cpu = np.array([epoch[way] for epoch in epochs]).T
        rates, costs = n_cells / seconds, 1e6 * cpu / n_cells
        yield (
            f"{way:20} {np.median(rates):9,.0f} cells/s ({rates.min():,.0f} to {rates.max():,.0f}) "
            f"{np.median(costs):6.1f} us of a core for each cell"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--passes", type=int, default=5)
    options = parser.parse_args()
    for source in options.sources:
        print(source)
        for line in measure(source, options.batch_size, options.passes):
            print(line, flush=True)


if __name__ == "__main__":
    main()
