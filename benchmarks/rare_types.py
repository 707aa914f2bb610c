"""How well does a classifier learn rare cell types? Labels from 1 to 10,000, and four ways to train on them.

    python -m benchmarks.rare_types run zheng_facs_pbmc.h5ad --out benchmarks/results/rare_types.jsonl
    python -m benchmarks.rare_types draw benchmarks/results/rare_types.jsonl docs/rare_types.png

The numbers of training cells of the types are a geometric series from 80,000 to 8. A cell is made of a real cell, its
parent: each molecule is kept with probability 1/2, so the cells of a parent differ. The test set has equal numbers of
cells of all types, from other parents. The model is a softmax regression of the cell type on log-normalised counts. All
ways have the same number of steps, the same initial weights and the same learning rate. Each seed draws the parents,
the cells, and how rare each type is. There is one record per seed and way, with the confusion matrices of the test
cells during training.

Without a file, the parents are the 700 cells of ``cellfeed.datasets``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import torch
from torch.nn.functional import cross_entropy

from benchmarks.harness.records import append, commit, versions
from benchmarks.scvi_knn import choose_genes
from benchmarks.training import features, one_thread
from cellfeed import ExperimentDataset
from cellfeed.datasets import pbmc700_anndata
from cellfeed.rows.minibatch import Minibatch

LABEL = "cell_type"
PACKAGES = ("cellfeed", "torch", "anndata", "numpy")


@dataclass(frozen=True)
class Spec:
    """The sizes of a run."""

    rarest: int = 8
    ratio: int = 10_000
    n_test: int = 1000
    n_genes: int = 1000
    batch_size: int = 64
    n_steps: int = 4096


# ---------------------------------------------------------------------- the cells

HELD_OUT = 0.3
"""The fraction of the real cells of each type that are parents of test cells."""


def real_cells(path: str | None) -> anndata.AnnData:
    """Return counts, with the types in the column ``LABEL`` of obs."""
    if path is not None:
        return anndata.read_h5ad(path)
    cells = pbmc700_anndata()
    cells.obs[LABEL] = cells.obs["bulk_labels"]
    return cells


def draw_cells(real: anndata.AnnData, spec: Spec, seed: int) -> tuple[anndata.AnnData, anndata.AnnData]:
    """Return training cells in random order, and test cells."""
    rng = np.random.default_rng(seed)
    types = rng.permutation(np.unique(real.obs[LABEL].astype(str)))  # from common to rare
    sizes = np.geomspace(spec.rarest * spec.ratio, spec.rarest, len(types)).round().astype(int)
    train, test = [], []
    for name, n_cells in zip(types, sizes, strict=True):
        parents = rng.permutation(np.flatnonzero(real.obs[LABEL] == name))
        n_held_out = round(HELD_OUT * len(parents))
        train.append(np.resize(parents[n_held_out:], n_cells))  # each parent in turn
        test.append(np.resize(parents[:n_held_out], spec.n_test))
    chosen = real[:, np.sort(choose_genes(real.X)[: spec.n_genes])]
    return thinned(chosen, rng.permutation(np.concatenate(train)), rng), thinned(chosen, np.concatenate(test), rng)


def thinned(real: anndata.AnnData, parents: np.ndarray, rng: np.random.Generator) -> anndata.AnnData:
    """Return a cell for each parent, which has each molecule of the parent with probability 1/2."""
    X = real.X[parents].tocsr()
    X.data = rng.binomial(X.data.astype(np.int64), 0.5).astype(np.float32)
    X.eliminate_zeros()
    obs = pd.DataFrame({LABEL: pd.Categorical(real.obs[LABEL].astype(str).to_numpy()[parents])})
    return anndata.AnnData(X, obs.set_index(obs.index.astype(str)), real.var[[]])


@dataclass(frozen=True)
class Cells:
    """Test cells in memory.

    Attributes
    ----------
    X
        float32, shape (n_cells, n_genes): features.
    codes
        int64, shape (n_cells,): types.
    n_types
        Number of types.
    """

    X: torch.Tensor
    codes: torch.Tensor
    n_types: int

    @torch.no_grad()
    def confusion(self, model: torch.nn.Module) -> np.ndarray:
        """Return numbers of cells, shape (n_types, n_types): true by predicted."""
        pairs = self.codes * self.n_types + model(self.X).argmax(dim=1)
        return torch.bincount(pairs, minlength=self.n_types**2).reshape(self.n_types, -1).numpy()


# ---------------------------------------------------------------------- the ways to train

LEARNING_RATE = 1e-3
FIRST = 64
"""Steps after which the test cells are classified for the first time; then after twice this number, and so on."""

PLAIN, WEIGHTED, BALANCED, ROOT = "plain", "weighted loss", "balance", "balance, temperature=0.5"
WAYS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    WEIGHTED: {},
    ROOT: {"balance": LABEL, "temperature": 0.5},
    BALANCED: {"balance": LABEL},
}
"""The arguments of ``resample``, if a way has any."""


def learn(
    minibatches: Iterable[Minibatch], test: Cells, weight: torch.Tensor | None, seed: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Train a model; yield numbers of steps, each with the confusion of the test cells after it."""
    torch.manual_seed(seed)
    model = torch.nn.Linear(test.X.shape[1], test.n_types)
    optimiser = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    for step, (X, obs) in enumerate(minibatches, start=1):
        loss = cross_entropy(model(features(X)), obs[:, 0], weight)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step >= FIRST and step.bit_count() == 1:  # a power of 2
            yield step, test.confusion(model)


def run(path: str | None, out: Path | None, seeds: int, spec: Spec) -> list[dict[str, Any]]:
    """Train in each way with each seed; return a record of each."""
    records, real = [], real_cells(path)
    made = {"commit": commit(), "versions": versions(PACKAGES), "cells": Path(path).name if path else "pbmc700"}
    with one_thread(), tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            cells, others = draw_cells(real, spec, seed)
            cells.write_h5ad(Path(folder) / f"{seed}.h5ad")
            whole = ExperimentDataset(
                Path(folder) / f"{seed}.h5ad", obs_column_names=[LABEL], batch_size=spec.batch_size, seed=seed
            )
            for way in WAYS:
                records.append({**made, "seed": seed, "way": way, **measure(whole, cells, others, way, spec, seed)})
                append(out, records[-1], separators=(",", ":"))
                print(f"seed {seed}, {way}: macro-F1 {f1(records[-1], spec.n_steps).mean():.3f}", flush=True)
    return records


def measure(
    whole: ExperimentDataset, cells: anndata.AnnData, others: anndata.AnnData, way: str, spec: Spec, seed: int
) -> dict[str, Any]:
    dataset = whole.resample(**WAYS[way]) if WAYS[way] else whole
    encoder = whole.obs_encoders[LABEL]
    n_cells = cells.obs[LABEL].value_counts().loc[encoder.classes_].to_numpy()  # of each code
    X, codes = torch.from_numpy(others.X.toarray()), torch.from_numpy(encoder.transform(others.obs))
    test = Cells(features(X), codes, len(n_cells))
    weight = torch.from_numpy(n_cells.mean() / n_cells).float() if way == WEIGHTED else None
    minibatches = islice(chain.from_iterable(repeat(dataset)), spec.n_steps)  # epoch after epoch
    order = np.argsort(-n_cells)
    plan = dataset.plan(LABEL)
    return {
        "types": [str(encoder.classes_[code]) for code in order],
        "n_cells": n_cells[order].tolist(),
        "n_distinct": plan.n_distinct,
        "effective_n_obs": plan.effective_n_obs,
        "confusions": {
            str(step): confusion[order][:, order].tolist() for step, confusion in learn(minibatches, test, weight, seed)
        },
    }


# ---------------------------------------------------------------------- figures


def f1(record: dict[str, Any], step: int, *, in_store: bool = False) -> np.ndarray:
    """Return the F1 score of each type, common to rare: among equal numbers, or at the frequencies of the store."""
    confusion = np.array(record["confusions"][str(step)], np.float64)
    if in_store:
        confusion *= (np.array(record["n_cells"]) / confusion.sum(axis=1))[:, None]
    return 2 * np.diag(confusion) / (confusion.sum(axis=0) + confusion.sum(axis=1))


def recall(record: dict[str, Any], step: int) -> np.ndarray:
    """Return the fraction of the test cells of each type that is recognised, common to rare."""
    confusion = np.array(record["confusions"][str(step)])
    return np.diag(confusion) / confusion.sum(axis=1)


def accuracy(record: dict[str, Any], step: int) -> float:
    """Return the expected fraction of cells that is right at the frequencies of the store."""
    return float(np.average(recall(record, step), weights=record["n_cells"]))


def steps_of(records: list[dict[str, Any]]) -> list[int]:
    return sorted(map(int, records[0]["confusions"]))


def summary(records: list[dict[str, Any]]) -> str:
    """A table of the ways, in Markdown: means over the seeds, and the standard deviation of macro-F1."""
    steps = steps_of(records)
    shown, last = [step for step in (256, steps[-1]) if step in steps], steps[-1]
    heads = ["", *(f"macro-F1 after {step:,} steps" for step in shown), "recall: three most common", "four between"]
    heads += ["three rarest", "macro-F1 at the frequencies of the store", "accuracy at these"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for way in WAYS:
        own = [record for record in records if record["way"] == way]
        recalls = np.mean([recall(record, last) for record in own], axis=0)
        figures = [_mean_and_sd([f1(record, step).mean() for record in own]) for step in shown]
        figures += [f"{part.mean():.2f}" for part in (recalls[:3], recalls[3:-3], recalls[-3:])]
        figures.append(_mean_and_sd([f1(record, last, in_store=True).mean() for record in own]))
        figures.append(f"{np.mean([accuracy(record, last) for record in own]):.1%}")
        lines.append(f"| {' | '.join([way, *figures])} |")
    return "\n".join(lines)


def _mean_and_sd(values: list[float]) -> str:
    return f"{np.mean(values):.3f} \N{PLUS-MINUS SIGN} {np.std(values, ddof=min(1, len(values) - 1)):.3f}"


COLOURS = {PLAIN: "black", WEIGHTED: "#ffa90e", ROOT: "#3f90da", BALANCED: "#bd1f01"}


def draw(records: list[dict[str, Any]], picture: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True, layout="constrained")
    steps = steps_of(records)
    for way, colour in COLOURS.items():
        own = [record for record in records if record["way"] == way]
        scores = np.array([[f1(record, step).mean() for step in steps] for record in own])  # (n_seeds, n_steps)
        left.plot(steps, scores.mean(axis=0), color=colour, label=way)
        left.fill_between(steps, scores.min(axis=0), scores.max(axis=0), color=colour, alpha=0.12, linewidth=0)
        recalls = np.mean([recall(record, steps[-1]) for record in own], axis=0)
        right.plot(own[0]["n_cells"], recalls, "o-", color=colour, markersize=4)
    left.set_xscale("log", base=2)
    left.set_xticks(steps, [f"{step:,}" for step in steps])
    left.set(xlabel="steps of training", ylim=(0, 1))
    left.set_title("macro-F1 of equal numbers of test cells", fontsize=10)
    right.set_xscale("log")
    right.invert_xaxis()
    right.set_xlabel("training cells of the type")
    right.set_title(f"recall of each type after {steps[-1]:,} steps", fontsize=10)
    for axis in (left, right):
        axis.grid(True, alpha=0.25)
    left.legend(frameon=False, fontsize=9)
    figure.savefig(picture, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("cells", nargs="?", help="an .h5ad file of counts with the column cell_type in obs")
    running.add_argument("--out", type=Path, default=Path("benchmarks/results/rare_types.jsonl"))
    running.add_argument("--seeds", type=int, default=5)
    drawing = commands.add_parser("draw")
    drawing.add_argument("results", type=Path)
    drawing.add_argument("picture", type=Path)
    options = parser.parse_args()
    if options.command == "run":
        run(options.cells, options.out, options.seeds, Spec())
    else:
        records = [json.loads(line) for line in options.results.read_text().splitlines()]
        draw(records, options.picture)
        print(summary(records))


if __name__ == "__main__":
    main()
