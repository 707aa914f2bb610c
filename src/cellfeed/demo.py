"""The whole path on real cells: write a small experiment, train a classifier on it, show how it went."""

from __future__ import annotations

import atexit
import functools
import shutil
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from cellfeed.address import locate
from cellfeed.dataloader import experiment_dataloader
from cellfeed.datapipe import ExperimentDataPipe
from cellfeed.errors import SelectionError
from cellfeed.report import Plan
from cellfeed.stats import hidden
from cellfeed.warmup import compile_kernels

LABEL = "bulk_labels"

COMPILING = "compiling kernels, once per environment: this takes a few seconds"
"""Printed to stderr before the progress bar, if numba's cache lacks a kernel."""


@functools.cache
def example_experiment() -> str:
    """Write the demo's experiment to a temporary folder, once a process, and return its URI.

    Examples
    --------
    >>> import tiledbsoma, cellfeed.demo
    >>> with tiledbsoma.open(cellfeed.demo.example_experiment()) as experiment:
    ...     experiment.obs.count
    700
    """
    folder = tempfile.mkdtemp(prefix="cellfeed-demo-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return write_experiment(Path(folder) / "pbmc700.soma")


def write_experiment(path: str | Path) -> str:
    """Write the cells of :func:`example_cells` as a SOMA experiment, their counts as the layer ``X["raw"]``.

    Parameters
    ----------
    path
        A folder that does not exist yet.

    Returns
    -------
    The URI of the experiment.

    Raises
    ------
    SelectionError
        If the folder exists.
    """
    uri = locate(path)
    if Path(uri).exists():
        raise SelectionError(f"path={str(path)!r} exists; give a folder that does not")
    cells = example_cells()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations between anndata and tiledbsoma
        import tiledbsoma.io

        # As a layer: tiledbsoma 2.3 fails on the X of anndata 0.13, which is the layer None there.
        cells.layers["raw"], cells.X = cells.X, None
        return str(tiledbsoma.io.from_anndata(uri, cells, measurement_name="RNA"))


def example_cells() -> Any:
    """Return the 700 real blood cells that scanpy ships, as an ``anndata.AnnData`` of counts.

    They are ``scanpy.datasets.pbmc68k_reduced``: 765 genes of peripheral blood cells from Zheng et al. (2017), with
    the type of each cell in the obs column ``bulk_labels``. scanpy ships the logarithms of counts scaled to 10,000
    molecules a cell; obs tells how many molecules there were, so that the counts can be had back.

    Examples
    --------
    >>> import cellfeed.demo
    >>> cells = cellfeed.demo.example_cells()
    >>> cells.shape, int(cells.X.max())
    ((700, 765), 259)
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations between scanpy and anndata
        import anndata
        import scanpy

        reduced = scanpy.datasets.pbmc68k_reduced()
        counts = reduced.raw.X.tocsr(copy=True)
        molecules = np.repeat(reduced.obs["n_counts"].to_numpy(), np.diff(counts.indptr))
        counts.data = np.rint(np.expm1(counts.data) * molecules / 1e4).astype(np.float32)
        return anndata.AnnData(X=counts, obs=reduced.obs, var=reduced.raw.var)


@dataclass(frozen=True)
class DemoResult:
    """How the demo went.

    Attributes
    ----------
    accuracy
        Fraction of held-out cells whose label was predicted.
    baseline
        The same for always predicting the most frequent label of the training cells.
    cells_per_second
        Cells trained on, per second of training.
    n_train, n_test, n_labels, n_epochs
        Sizes.
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
    label: str = LABEL,
    *,
    n_epochs: int = 20,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
    **parameters: Any,
) -> DemoResult:
    """Train a logistic regression on the labels of an experiment's cells.

    Parameters
    ----------
    uri
        A SOMA experiment; ``None`` takes :func:`example_experiment`.
    label
        The column of obs to predict.
    n_epochs, batch_size, seed
        Of the training.
    progress
        Show a progress bar; before it, say if kernels must be compiled.
    parameters
        Further parameters of :class:`cellfeed.ExperimentDataPipe`.

    Returns
    -------
    :class:`DemoResult`; ``print`` it.
    """
    datapipe = ExperimentDataPipe(
        example_experiment() if uri is None else uri,
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
    """Train with Adam; return the seconds that it took."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-3)
    started = time.perf_counter()
    with tqdm(total=n_epochs * len(dataset), unit=" minibatches", disable=hidden(progress)) as bar:
        for epoch in range(n_epochs):
            bar.set_description(f"epoch {epoch + 1}/{n_epochs}")
            model.train()
            for X, y in _labelled(dataset):
                if len(y) > 1:  # one cell has no variance to normalise by
                    loss = torch.nn.functional.cross_entropy(model(X), y)
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
                bar.update()
    return time.perf_counter() - started


def predict(model: torch.nn.Module, dataset: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return predicted and true codes of every cell of a dataset."""
    model.eval()
    with torch.no_grad():
        pairs = [(model(X).argmax(dim=1).numpy(), y.numpy()) for X, y in _labelled(dataset)]
    if not pairs:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return np.concatenate([p for p, _ in pairs]), np.concatenate([y for _, y in pairs])


def _labelled(dataset: Any) -> Any:
    return ((minibatch.X, minibatch.obs[:, 0]) for minibatch in experiment_dataloader(dataset))
