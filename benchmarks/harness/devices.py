"""Minibatches on a device, by each loader in its own way, and the models that are trained on them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import scipy.sparse as sp
import tiledbsoma as soma
import torch

from benchmarks.harness.contenders import Case, annbatch, tiledbsoma_ml
from benchmarks.harness.formats import converted, write_annbatch, write_h5ad
from benchmarks.harness.records import environment
from benchmarks.harness.stores import StoreSpec, write_store
from cellfeed import ExperimentDataset, experiment_dataloader

ANNBATCH: dict[str, dict[str, Any]] = {
    "512 rows x 32": {},  # its defaults
    "128 rows x 64": {"chunk_size": 128, "preload_nchunks": 64},
}
"""Settings of annbatch: the adjacent rows that it reads, and the chunks of them that it shuffles at once."""

Step = Callable[[torch.Tensor], torch.Tensor]
"""Returns the loss of a minibatch."""


def write_stores(folder: Path, spec: StoreSpec, n_copies: int) -> dict[str, str]:
    """Write an experiment, a local copy that repeats it, and annbatch's collection, unless they are there.

    annbatch's is left out if annbatch is not installed. Returns the paths of the others by the kind of source.
    """
    uri, single = folder / f"census_{spec.n_obs}.soma", folder / f"census_{spec.n_obs}.zarr"
    repeated = folder / f"census_{spec.n_obs * n_copies}.zarr"
    folder.mkdir(parents=True, exist_ok=True)
    if not uri.exists():
        write_store(str(uri), spec)
    if not single.exists():
        ExperimentDataset(str(uri), seed=0).write_copy(single)
    if not repeated.exists():
        studies = [folder / f"study_{k}.zarr" for k in range(n_copies)]
        for study in studies:
            study.symlink_to(single.name)
        command = [sys.executable, "-m", "cellfeed", "copy", *map(str, studies), str(repeated), "--layer", "X"]
        subprocess.run(command, check=True, capture_output=True, env=environment())
    if find_spec("annbatch") and not converted(str(uri), "annbatch").exists():
        write_h5ad(str(uri))  # of float32: PyTorch makes no dense minibatch of the small types of a copy
        write_annbatch(str(uri))
    return {"copy": str(repeated), "SOMA": str(uri)}


def make_dataset(path: str, n_genes: int | None, batch_size: int, sparse: bool) -> ExperimentDataset:
    """Make the dataset of all cells of a source, and of the first genes or of all."""
    genes = None if n_genes is None else soma.AxisQuery(coords=(slice(0, n_genes - 1),))
    return ExperimentDataset(path, var_query=genes, batch_size=batch_size, seed=0, return_sparse_X=sparse)


def minibatches(dataset: ExperimentDataset, way: str, device: torch.device) -> Iterator[torch.Tensor]:
    """Yield X of an epoch of cellfeed on the device, in one of three ways."""
    if way == "to":
        return (X.to(device) for X, _ in experiment_dataloader(dataset))
    return (X for X, _ in experiment_dataloader(dataset, device="meta" if way == "host" else device))


def peers(
    sources: dict[str, str], batch_size: int, sparse: bool, device: torch.device
) -> Iterator[tuple[str, Callable[[], Iterator[torch.Tensor]]]]:
    """Yield the name and the epochs of each setting of each peer that is installed.

    annbatch moves rows to a GPU before it shuffles them.
    """
    case = Case(sources["SOMA"], sparse=sparse, batch_size=batch_size)
    at_all = {"to": "torch", "preload_to_gpu": device.type == "cuda", "zarrs": find_spec("zarrs") is not None}
    for setting, options in ANNBATCH.items() if find_spec("annbatch") else ():
        yield f"annbatch, {setting}", moved(annbatch(replace(case, options={**at_all, **options})), device)
    if find_spec("tiledbsoma_ml"):
        yield "tiledbsoma-ml", moved(tiledbsoma_ml(case), device)


def moved(epoch: Callable[[], Iterator[tuple[Any, int]]], device: torch.device) -> Callable[[], Iterator[torch.Tensor]]:
    """Return a function that begins an epoch of a contender, with X on the device."""

    def on_device() -> Iterator[torch.Tensor]:
        for X, _ in epoch():
            if sp.issparse(X):
                X = torch.sparse_csr_tensor(X.indptr, X.indices, X.data, size=X.shape)
            yield torch.as_tensor(X).to(device)

    return on_device


def perceptron(n_vars: int, device: torch.device) -> Step:
    """Return the step of a classifier with layers of 1,024 and 512 units."""
    model = torch.nn.Sequential(
        torch.nn.Linear(n_vars, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 512), torch.nn.ReLU(),
        torch.nn.Linear(512, 10),
    ).to(device)  # fmt: skip
    return trained(model, lambda X: model(X.log1p()).logsumexp(1).mean())


def scvi(n_vars: int, device: torch.device) -> Step:
    """Return the step of scVI's variational autoencoder, with its default settings."""
    from scvi.module import VAE

    model = VAE(n_input=n_vars, n_batch=1).to(device)

    def loss(X: torch.Tensor) -> torch.Tensor:
        zeros = torch.zeros(len(X), 1, device=device)
        *_, losses = model({"X": X, "batch": zeros, "labels": zeros})
        return torch.as_tensor(losses.loss)

    return trained(model, loss)


def trained(model: torch.nn.Module, loss: Step) -> Step:
    """Return the step that updates the parameters of a model."""
    optimizer = torch.optim.Adam(model.parameters())

    def step(X: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        value = loss(X)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return value

    return step


def sleeper(seconds: float) -> Step:
    """Return a step of a known length."""

    def step(X: torch.Tensor) -> torch.Tensor:
        time.sleep(seconds)
        return X

    return step
