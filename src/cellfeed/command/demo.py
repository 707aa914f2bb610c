"""Train a classifier of cell types on real cells: the work of ``cellfeed demo``."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cellfeed._progress import progress_bar
from cellfeed.command.warmup import compile_kernels
from cellfeed.datasets import pbmc700
from cellfeed.loader.dataloader import experiment_dataloader
from cellfeed.loader.datapipe import ExperimentDataPipe
from cellfeed.plan.summary import Plan

COMPILING = "compiling kernels, once per environment: this takes a few seconds"
"""Printed to stderr before the progress bar, if numba's cache lacks a kernel."""


@dataclass(frozen=True)
class DemoResult:
    """The result of the demo.

    Attributes
    ----------
    accuracy
        Fraction of held-out cells whose label is predicted correctly.
    baseline
        The accuracy of the most frequent label of the training cells.
    cells_per_second
        Training cells per second of training.
    n_train, n_test, n_labels, n_epochs
        Number of training cells, held-out cells, labels and epochs.
    plan
        The plan of the training cells.
    """

    accuracy: float
    baseline: float
    cells_per_second: float
    n_train: int
    n_test: int
    n_labels: int
    n_epochs: int
    plan: Plan

    def __str__(self) -> str:
        return (
            f"{self.plan}\n\n"
            f"trained on {self.n_train:,} cells of {self.n_labels} labels, {self.n_epochs} epochs, "
            f"{self.cells_per_second:,.0f} cells/s\n"
            f"held-out accuracy {self.accuracy:.1%} on {self.n_test:,} cells; "
            f"the most frequent label alone: {self.baseline:.1%}"
        )


def run(
    uri: str | None = None,
    label: str = "bulk_labels",
    *,
    n_epochs: int = 20,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
    **parameters: Any,
) -> DemoResult:
    """Train a logistic regression on the labels of the cells of an experiment.

    Parameters
    ----------
    uri
        The URI of a SOMA experiment; ``None`` takes :func:`cellfeed.datasets.pbmc700`.
    label
        The column of obs to predict.
    n_epochs
        Number of epochs.
    batch_size
        Cells per minibatch.
    seed
        Seed of the split, the order of cells and the initial weights.
    progress
        Whether to show a progress bar, and a message if kernels are compiled.
    parameters
        Further parameters of :class:`cellfeed.ExperimentDataPipe`.

    Returns
    -------
    :class:`DemoResult`; ``print`` it.
    """
    datapipe = ExperimentDataPipe(
        pbmc700() if uri is None else uri,
        obs_column_names=[label],
        batch_size=batch_size,
        shuffle=True,
        seed=seed,
        allow_empty=False,
        **parameters,
    )
    train, test = datapipe.random_split(weights={"train": 0.8, "test": 0.2}, seed=seed, stratify=label)
    n_labels = len(datapipe.obs_encoders[label].classes_)  # type: ignore[attr-defined]
    torch.manual_seed(seed)
    model = LogisticRegression(datapipe.shape[1], n_labels)
    compile_kernels(train, lambda: print(COMPILING, file=sys.stderr, flush=True) if progress else None)
    seconds = fit(model, train, n_epochs=n_epochs, progress=progress)
    predicted, true = predict(model, test)
    counts = np.bincount(np.concatenate([y.numpy() for _, y in _labelled(train)]), minlength=n_labels)
    return DemoResult(
        accuracy=float((predicted == true).mean()) if len(true) else float("nan"),
        baseline=float((true == counts.argmax()).mean()) if len(true) else float("nan"),
        cells_per_second=train.shape[0] * n_epochs / seconds,
        n_train=train.shape[0],
        n_test=test.shape[0],
        n_labels=n_labels,
        n_epochs=n_epochs,
        plan=train.plan(),
    )


class LogisticRegression(torch.nn.Module):
    """Softmax regression on log-scaled counts."""

    def __init__(self, n_vars: int, n_labels: int) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(n_vars, affine=False)
        self.linear = torch.nn.Linear(n_vars, n_labels)

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        """Return logits, shape (B, n_labels)."""
        return self.linear(self.norm(torch.log1p(X)))  # type: ignore[no-any-return]


def fit(model: torch.nn.Module, dataset: Any, *, n_epochs: int, progress: bool) -> float:
    """Train with Adam; return the duration in seconds."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-3)
    started = time.perf_counter()
    with progress_bar(progress, total=n_epochs * len(dataset), unit=" minibatches") as bar:
        for epoch in range(n_epochs):
            bar.set_description(f"epoch {epoch + 1}/{n_epochs}")
            model.train()
            for X, y in _labelled(dataset):
                if len(y) > 1:  # batch normalisation needs two cells
                    loss = torch.nn.functional.cross_entropy(model(X), y)
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
                bar.update()
    return time.perf_counter() - started


def predict(model: torch.nn.Module, dataset: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the predicted and the true codes of the cells of a dataset."""
    model.eval()
    with torch.no_grad():
        pairs = [(model(X).argmax(dim=1).numpy(), y.numpy()) for X, y in _labelled(dataset)]
    if not pairs:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return np.concatenate([p for p, _ in pairs]), np.concatenate([y for _, y in pairs])


def _labelled(dataset: Any) -> Any:
    return ((minibatch.X, minibatch.obs[:, 0]) for minibatch in experiment_dataloader(dataset))
