"""The article's Figures 1 and 2 again: how the order of the cells affects the loss of a model.

    python -m benchmarks.training write batches_524k.soma
    python -m benchmarks.training run batches_524k.soma --out benchmarks/results/training.jsonl
    python -m benchmarks.training draw benchmarks/results/training.jsonl docs/training.png

The store is made for this comparison: data sets lie one after another, each with a gene profile of its own (its batch
effect) and with some of the cell types, in its own proportions. The model is a softmax regression of the cell type on
log-normalised counts, trained for one epoch; contenders differ in the order of the cells only.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.sparse as sp
import torch
from torch.nn.functional import cross_entropy

from benchmarks.harness.contenders import PACKAGES
from benchmarks.harness.records import append, commit, versions
from benchmarks.harness.stores import StoreSpec, write_cells
from cellfeed import ExperimentDataset
from cellfeed.loader.label_counts import LabelCounter
from cellfeed.rows.minibatch import Minibatch

# ---------------------------------------------------------------------- the store

SPEC = StoreSpec(n_obs=524_288, n_vars=1000, nnz_per_cell=100, n_datasets=48, tile=256, capacity=8192)
"""2,048 row-blocks of 256 cells: the published default's pool is a quarter of it, as 2,000 of its chunks are 128,000
cells."""

N_TYPES = 20
TYPES_PER_DATASET = 6
BATCH_EFFECT = 0.8
TYPE_EFFECT = 0.3
"""Standard deviations, over genes, of a data set's and a cell type's share in the logarithm of expression."""


def write(uri: str, spec: StoreSpec) -> None:
    rng = np.random.default_rng(spec.seed)
    shares = rng.lognormal(0, 1, spec.n_datasets)
    dataset = np.sort(rng.choice(spec.n_datasets, spec.n_obs, p=shares / shares.sum()))
    types = np.array([rng.choice(N_TYPES, TYPES_PER_DATASET, replace=False) for _ in range(spec.n_datasets)])
    place = _draw_places(rng, dataset, spec.n_datasets)
    depth = spec.nnz_per_cell * rng.lognormal(-0.08, 0.4, spec.n_obs)

    def obs(sums: dict[str, np.ndarray]) -> pa.Table:
        columns = {
            "soma_joinid": np.arange(spec.n_obs),
            "dataset_id": pd.Categorical([f"data set {d:02d}" for d in dataset]),
            "cell_type": pd.Categorical([f"cell type {t:02d}" for t in types[dataset, place]]),
            "nnz": sums["nnz"],
        }
        return pa.Table.from_pandas(pd.DataFrame(columns), preserve_index=False)

    kind = TYPES_PER_DATASET * dataset + place
    write_cells(uri, spec, depth, kind, _popularity(rng, types, spec.n_vars), obs)


def _draw_places(rng: np.random.Generator, dataset: np.ndarray, n_datasets: int) -> np.ndarray:
    """Draw the type of each cell, an index into the types of its data set; proportions differ between data sets."""
    upto = rng.dirichlet(np.ones(TYPES_PER_DATASET), n_datasets).cumsum(axis=1)
    return (rng.random(len(dataset))[:, None] > upto[dataset, :-1]).sum(axis=1)


def _popularity(rng: np.random.Generator, types: np.ndarray, n_vars: int) -> np.ndarray:
    """float64, shape (n_datasets * types of each, n_vars): the effects add up in the logarithm."""
    base = rng.normal(0, 1.2, n_vars)
    of_dataset = rng.normal(0, BATCH_EFFECT, (len(types), 1, n_vars))
    of_type = rng.normal(0, TYPE_EFFECT, (N_TYPES, n_vars))
    each = np.exp(base + of_dataset + of_type[types]).reshape(-1, n_vars)
    return each / each.sum(axis=1, keepdims=True)


# ---------------------------------------------------------------------- the contenders

BATCH_SIZE = 128
CHUNKS = 2000
LABEL = "dataset_id"
SPLIT = {"train": 0.9, "test": 0.1}
LITTLE = "32 MB"
"""A budget for settings with a fixed pool: with more, several blocks would be read together."""


IN_ORDER, ONE_CHUNK, PUBLISHED = "in order", "one chunk at a time", "published default"
OWN_PLAN, MIXING, FULL = "own plan", "mixing=0.9", "full shuffle"


@dataclass(frozen=True)
class Contender:
    """One order of the cells: of cellfeed with some options, or of NumPy with all cells in memory."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    in_memory: bool = False


def contenders(uri: str, chunks: int = CHUNKS) -> list[Contender]:
    """All contenders; cellfeed's own plans get a tenth of the pool of the published default."""
    row_block = split(uri)[0]._engine.selection.geometry.row_extent
    published = {"soma_chunk_size": 64, "shuffle_chunk_count": chunks, "memory_budget": LITTLE}
    tenth = budget_for(uri, split(uri, seed=0, **published)[0].plan().pool_bytes / 10)
    return [
        Contender(IN_ORDER, {"shuffle": False, "memory_budget": LITTLE}),
        Contender(ONE_CHUNK, {"soma_chunk_size": row_block, "shuffle_chunk_count": 1, "memory_budget": LITTLE}),
        Contender(PUBLISHED, published),
        Contender(OWN_PLAN, {"memory_budget": tenth}),
        Contender(MIXING, {"memory_budget": tenth, "mixing": 0.9}),
        Contender(FULL, in_memory=True),
    ]


def budget_for(uri: str, pool: float) -> int:
    """Return the ``memory_budget`` that leaves ``pool`` bytes for the pool."""
    process = replace(split(uri)[0]._engine.media.source.planner.budget(), n_bytes=int(pool))
    held = pool + process.minibatch_bytes
    return int(max(held + process.reads_bytes, held / 0.75))  # a quarter is set aside for reads, or one read


def split(uri: str, **options: Any) -> list[ExperimentDataset]:
    """Return the training cells and the test cells, which are the same for every contender."""
    whole = ExperimentDataset(uri, obs_column_names=["cell_type", LABEL], **{"batch_size": BATCH_SIZE, **options})
    return whole.random_split(SPLIT, seed=0, stratify=LABEL)


@dataclass(frozen=True)
class Cells:
    """Cells in memory.

    Attributes
    ----------
    X
        Counts.
    obs
        int64, shape (n_cells, 2): codes of the cell type and of the data set.
    """

    X: sp.csr_matrix
    obs: torch.Tensor

    @classmethod
    def read(cls, dataset: ExperimentDataset) -> Cells:
        Xs, obs = zip(*dataset, strict=True)
        parts = [sp.csr_matrix((X.values(), X.col_indices(), X.crow_indices()), X.shape) for X in Xs]
        return cls(sp.vstack(parts, format="csr"), torch.cat(obs))

    def minibatches(self, order: np.ndarray, batch_size: int) -> Iterator[Minibatch]:
        for low in range(0, len(order), batch_size):
            chosen = order[low : low + batch_size]
            yield Minibatch(torch.from_numpy(self.X[chosen].toarray()), self.obs[chosen])


# ---------------------------------------------------------------------- the model

LEARNING_RATE = 1e-3
MOLECULES = 1000
"""Counts of a cell are scaled to this sum before the logarithm."""


def features(X: torch.Tensor) -> torch.Tensor:
    return torch.log1p(X * (MOLECULES / X.sum(dim=1, keepdim=True).clamp(min=1)))


def train(minibatches: Iterable[Minibatch], n_genes: int, seed: int) -> tuple[torch.nn.Module, list[float]]:
    """Return the model and the loss of each minibatch."""
    torch.manual_seed(seed)
    model = torch.nn.Linear(n_genes, N_TYPES)
    optimiser = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    losses = []
    for X, obs in minibatches:
        loss = cross_entropy(model(features(X)), obs[:, 0])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return model, losses


@torch.no_grad()
def test(model: torch.nn.Module, cells: Cells) -> dict[str, float]:
    n, loss, right = cells.X.shape[0], 0.0, 0
    for X, obs in cells.minibatches(np.arange(n), 8192):
        logits = model(features(X))
        loss += cross_entropy(logits, obs[:, 0], reduction="sum").item()
        right += int((logits.argmax(dim=1) == obs[:, 0]).sum())
    return {"test_loss": loss / n, "test_accuracy": right / n}


MEDIAN_OF = 101


def spread(losses: list[float]) -> float:
    """Standard deviation of the loss around its running median, over the second half of the minibatches."""
    later = np.array(losses[len(losses) // 2 :])
    reach = min(MEDIAN_OF, len(later)) // 2
    around = np.lib.stride_tricks.sliding_window_view(np.pad(later, reach, mode="reflect"), 2 * reach + 1)
    return float(np.std(later - np.median(around, axis=1)))


# ---------------------------------------------------------------------- run


def run(uri: str, out: Path, seeds: int, chosen: list[Contender]) -> None:
    """Train with every contender and every seed; a record each."""
    kept, held_out = map(Cells.read, split(uri, shuffle=False, return_sparse_X=True, batch_size=8192))
    with one_thread():
        for contender in chosen:
            for seed in range(seeds):
                _save(out, measure(uri, contender, seed, kept, held_out))


@contextmanager
def one_thread() -> Iterator[None]:
    """Matrices are so small that several threads of PyTorch would take twenty times as long as one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure(uri: str, contender: Contender, seed: int, kept: Cells, held_out: Cells) -> dict[str, Any]:
    order = _numpy_order(kept, seed) if contender.in_memory else _cellfeed_order(uri, contender, seed)
    started = time.perf_counter()
    model, losses = train(order.minibatches, kept.X.shape[1], seed)
    return {
        "contender": contender.name,
        "seed": seed,
        "options": contender.options,
        "seconds": time.perf_counter() - started,
        **order.describe(),
        **test(model, held_out),
        "spread": spread(losses),
        "losses": [round(loss, 3) for loss in losses],
    }


@dataclass(frozen=True)
class Order:
    """Minibatches, and a function that describes them after they have been received."""

    minibatches: Iterable[Minibatch]
    describe: Callable[[], dict[str, Any]]


def _cellfeed_order(uri: str, contender: Contender, seed: int) -> Order:
    dataset = split(uri, seed=seed, **contender.options)[0]
    plan = dataset.plan(label=LABEL)

    def describe() -> dict[str, Any]:
        stats = dataset.stats()
        return {
            "predicted": plan.effective_batch_size,
            "delivered": stats.effective_batch_sizes[LABEL],
            "peak_pool_bytes": stats.peak_pool_bytes,
            "plan": plan.as_dict(),
        }

    return Order(dataset, describe)


def _numpy_order(kept: Cells, seed: int) -> Order:
    delivered = LabelCounter({"soma_joinid": None, LABEL: kept.obs[:, 1].numpy()}, BATCH_SIZE)
    minibatches = kept.minibatches(np.random.default_rng(seed).permutation(kept.X.shape[0]), BATCH_SIZE)

    def describe() -> dict[str, Any]:
        return {
            "predicted": float(BATCH_SIZE),
            "delivered": delivered.effective_batch_sizes()[LABEL],
            "peak_pool_bytes": kept.X.data.nbytes + kept.X.indices.nbytes + kept.X.indptr.nbytes,
        }

    return Order(delivered.counted(minibatches), describe)


def _save(out: Path, record: dict[str, Any]) -> None:
    made = {"commit": commit(), "versions": versions(PACKAGES), **record}
    append(out, made, separators=(",", ":"))  # thousands of losses
    print(
        f"{record['contender']:20} seed {record['seed']}: test loss {record['test_loss']:.4f}, "
        f"spread {record['spread']:.4f}, {record['seconds']:.1f} s",
        flush=True,
    )


# ---------------------------------------------------------------------- draw

COLOURS = {
    IN_ORDER: "tab:red",
    ONE_CHUNK: "tab:brown",
    PUBLISHED: "tab:orange",
    OWN_PLAN: "tab:green",
    MIXING: "tab:blue",
    FULL: "black",
}
TITLES = {
    IN_ORDER: "in order,\nnot shuffled",
    ONE_CHUNK: "one chunk of 256\nat a time",
    PUBLISHED: "published default,\n2,000 chunks of 64",
    OWN_PLAN: "own plan, a tenth of\nthe published pool",
    MIXING: "mixing=0.9, a tenth of\nthe published pool",
    FULL: "full shuffle,\nall in memory",
}


def draw(results: Path, picture: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    records = [json.loads(line) for line in results.read_text().splitlines()]
    names = [name for name in COLOURS if any(record["contender"] == name for record in records)]
    figure = plt.figure(figsize=(10, 7.4), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.1))
    above.suptitle("Loss of each minibatch of 128 cells: one epoch, one seed", fontsize=11)
    _draw_losses(above, {n: next(r["losses"] for r in records if r["contender"] == n) for n in names})
    below.suptitle("A point for each seed, a stroke at their mean", fontsize=11)
    axes = below.subplots(1, 2, sharey=True)
    _draw_points(axes[0], "spread of the loss between minibatches", _by_contender(records, names, "spread"))
    _draw_points(axes[1], "loss on held-out cells after training", _by_contender(records, names, "test_loss"))
    axes[0].set_yticks(range(len(names)), [TITLES[name] for name in names], fontsize=9)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    figure.savefig(picture, dpi=130)
    plt.close(figure)


def _by_contender(records: list[dict[str, Any]], names: list[str], figure: str) -> dict[str, np.ndarray]:
    return {name: np.array([r[figure] for r in records if r["contender"] == name]) for name in names}


LOSS_TICKS = [0.1, 0.2, 0.5, 1, 2, 5, 10]


def _draw_losses(figure: Any, losses: dict[str, list[float]]) -> None:
    axes = figure.subplots(1, len(losses), sharex=True, sharey=True, squeeze=False)[0]
    for axis, (name, values) in zip(axes, losses.items(), strict=True):
        axis.plot(values, color=COLOURS[name], lw=0.3)
        axis.set_title(TITLES[name], fontsize=9)
        axis.set_yscale("log")
        axis.set_yticks(LOSS_TICKS, [f"{tick:g}" for tick in LOSS_TICKS])
        axis.minorticks_off()
        axis.set_xticks(np.linspace(0, len(values) // 1000 * 1000, 3).astype(int))
        axis.grid(True, alpha=0.25)


def _draw_points(axis: Any, title: str, values: dict[str, np.ndarray]) -> None:
    """Draw those within twice the least mean; the others, which would crowd them, are written at the edge."""
    limit = 2 * min(each.mean() for each in values.values())
    for place, (name, each) in enumerate(values.items()):
        if each.mean() > limit:
            text = f"{each.mean():.2f} \N{RIGHTWARDS ARROW} "
            at_edge = {"transform": axis.get_yaxis_transform(), "ha": "right", "va": "center"}
            axis.text(1, place, text, color=COLOURS[name], **at_edge)
            continue
        axis.scatter(each, np.full(len(each), place), s=36, color=COLOURS[name], alpha=0.5, linewidths=0)
        axis.plot([each.mean()] * 2, [place - 0.3, place + 0.3], color=COLOURS[name], lw=1.5)
    axis.set_xlabel(title)
    axis.grid(True, alpha=0.25)


def summary(records: list[dict[str, Any]]) -> str:
    """A table of the contenders, in Markdown: means over the seeds."""
    heads = ["", "spread", "held-out loss", "accuracy", "effective batch size: predicted", "delivered"]
    heads += ["pool, measured", "memory planned, reads and minibatches included"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name in COLOURS:
        mine = [record for record in records if record["contender"] == name]
        if mine:
            lines.append(f"| {' | '.join([TITLES[name].replace(chr(10), ' '), *_figures(mine)])} |")
    return "\n".join(lines)


def _figures(records: list[dict[str, Any]]) -> list[str]:
    mean = {k: np.mean([r[k] for r in records]) for k in ("spread", "test_accuracy", "predicted", "delivered")}
    losses = np.array([r["test_loss"] for r in records])
    planned = max(r.get("plan", {}).get("peak_memory_bytes", 0) for r in records)
    return [
        f"{mean['spread']:.3f}",
        f"{losses.mean():.4f} \N{PLUS-MINUS SIGN} {losses.std(ddof=min(1, len(losses) - 1)):.4f}",
        f"{mean['test_accuracy']:.1%}",
        f"{mean['predicted']:.1f}",
        f"{mean['delivered']:.1f}",
        f"{max(r['peak_pool_bytes'] for r in records) / 1e6:.1f} MB",
        f"{planned / 1e6:.1f} MB" if planned else "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    writing = commands.add_parser("write")
    writing.add_argument("uri")
    running = commands.add_parser("run")
    running.add_argument("uri")
    running.add_argument("--out", type=Path, default=Path("benchmarks/results/training.jsonl"))
    running.add_argument("--seeds", type=int, default=5, help="of the order, and of the model before training")
    running.add_argument("--only", nargs="+", choices=list(COLOURS), default=list(COLOURS), help="contenders")
    drawing = commands.add_parser("draw")
    drawing.add_argument("results", type=Path)
    drawing.add_argument("picture", type=Path)
    options = parser.parse_args()
    if options.command == "write":
        write(options.uri, SPEC)
    elif options.command == "run":
        chosen = [contender for contender in contenders(options.uri) if contender.name in options.only]
        run(options.uri, options.out, options.seeds, chosen)
    else:
        draw(options.results, options.picture)
        print(summary([json.loads(line) for line in options.results.read_text().splitlines()]))


if __name__ == "__main__":
    main()
