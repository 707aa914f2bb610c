"""Minibatches on a device, by each loader in its own way, and the models that are trained on them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import tiledbsoma as soma
import torch

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
    """Write an experiment, a local copy that repeats it, and annbatch's collection of the copy, unless they are there.

    Returns the paths by the kind of source. annbatch's is missing if annbatch is not installed.
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
    sources = {"copy": str(repeated), "SOMA": str(uri)}
    if find_spec("annbatch"):
        sources["annbatch"] = str(folder / f"census_{spec.n_obs}.annbatch.zarr")
        if not Path(sources["annbatch"]).exists():
            write_annbatch(single, sources["annbatch"])
    return sources


def write_annbatch(source: Path, out: str) -> None:
    from annbatch import DatasetCollection

    DatasetCollection(out).add_adatas([str(source)], shuffle=True)


def make_dataset(path: str, n_genes: int | None, batch_size: int, sparse: bool) -> ExperimentDataset:
    """Make the dataset of all cells of a source, and of the first genes or of all."""
    genes = None if n_genes is None else soma.AxisQuery(coords=(slice(0, n_genes - 1),))
    return ExperimentDataset(path, var_query=genes, batch_size=batch_size, seed=0, return_sparse_X=sparse)


def minibatches(dataset: ExperimentDataset, way: str, device: torch.device) -> Iterator[torch.Tensor]:
    """Yield X of an epoch of cellfeed on the device, in one of three ways."""
    if way == "to":
        return (X.to(device) for X, _ in experiment_dataloader(dataset))
    return (X for X, _ in experiment_dataloader(dataset, device="meta" if way == "host" else device))


def of_annbatch(
    path: str, batch_size: int, sparse: bool, device: torch.device, options: dict[str, Any]
) -> Callable[[], Iterator[torch.Tensor]]:
    """Return a function that begins an epoch of annbatch, which moves rows to a GPU before it shuffles them."""
    import zarr
    from annbatch import DatasetCollection, Loader

    if find_spec("zarrs"):  # as its authors advise for local disks
        zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    on_gpu = device.type == "cuda"
    loader = Loader(batch_size=batch_size, shuffle=True, preload_to_gpu=on_gpu, to="torch", **options)
    loader = loader.use_collection(DatasetCollection(path, mode="r"))

    def epoch() -> Iterator[torch.Tensor]:
        for minibatch in loader:
            X = minibatch["X"].to(device)
            yield X if sparse else X.to_dense()

    return epoch


def of_tiledbsoma_ml(
    uri: str, batch_size: int, sparse: bool, device: torch.device
) -> Callable[[], Iterator[torch.Tensor]]:
    """Return a function that begins an epoch of tiledbsoma-ml."""
    import tiledbsoma_ml as ml

    query = soma.open(uri).axis_query("RNA")
    dataset = ml.ExperimentDataset(
        query,
        layer_name="raw",
        obs_column_names=["cell_type"],
        batch_size=batch_size,
        return_sparse_X=sparse,
        use_eager_fetch=True,
    )

    def epoch() -> Iterator[torch.Tensor]:
        for X, _ in ml.experiment_dataloader(dataset):
            rows = torch.sparse_csr_tensor(X.indptr, X.indices, X.data, size=X.shape) if sparse else torch.as_tensor(X)
            yield rows.to(device)

    return epoch


def peers(
    sources: dict[str, str], batch_size: int, sparse: bool, device: torch.device
) -> Iterator[tuple[str, Callable[[], Iterator[torch.Tensor]]]]:
    """Yield the name and the epochs of each setting of each peer that is installed."""
    for setting, options in ANNBATCH.items() if "annbatch" in sources else ():
        yield f"annbatch, {setting}", of_annbatch(sources["annbatch"], batch_size, sparse, device, options)
    if find_spec("tiledbsoma_ml"):
        yield "tiledbsoma-ml", of_tiledbsoma_ml(sources["SOMA"], batch_size, sparse, device)


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
