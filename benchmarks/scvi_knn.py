"""Is scVI trained through cellfeed as good as scVI trained on an AnnData in memory?

    python -m benchmarks.scvi_knn zheng_facs_pbmc.h5ad --out benchmarks/results/scvi_knn.jsonl

Blood cells of ten FACS-sorted populations. scVI is trained for 20 epochs on four fifths of them, on the 3,000 genes
that vary most for their mean, through each path with each of five seeds, and embeds all cells. A classifier by nearest
neighbours, fitted to the embeddings of the training cells, then predicts the populations of the other cells. There is
one record per path and seed.

tiledbsoma 2.3 cannot write the X of anndata 0.13, with which scvi-tools 1.5 comes: there, give ``--store zarr``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.records import append, commit, versions

LABEL = "cell_type"
N_NEIGHBOURS = 15
N_GENES = 3000
PACKAGES = ("cellfeed", "scvi-tools", "lightning", "torch", "anndata", "tiledbsoma", "numpy")


def write_store(cells: Any, uri: str) -> Any:
    """Write the cells, one library after another, as an experiment or a zarr store; return them in this order."""
    cells = cells[np.argsort(cells.obs["library"].astype(str), kind="stable")].copy()
    if uri.endswith(".zarr"):
        cells.write_zarr(uri)
    else:
        import tiledbsoma.io

        tiledbsoma.io.from_anndata(uri, cells, measurement_name="RNA", X_layer_name="raw")
    return cells


def choose_genes(X: Any) -> np.ndarray:
    """Places of the genes with the largest variance over mean, that one first."""
    mean = np.asarray(X.mean(axis=0)).ravel()
    variance = np.asarray(X.multiply(X).mean(axis=0)).ravel() - mean**2
    return np.argsort(-variance / np.maximum(mean, 1e-12), kind="stable")[:N_GENES]


def embed_by_cellfeed(
    uri: str, genes: Any, seed: int, n_epochs: int
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    import scvi

    from cellfeed.scvi import SCVIDataModule

    datamodule = SCVIDataModule(
        uri, batch_key=None, genes=genes, split={"train": 0.8, "test": 0.2}, split_seed=0, stratify=LABEL, seed=seed
    )
    scvi.settings.seed = seed
    model = scvi.model.SCVI(adata=None, registry=datamodule.registry)
    began = time.perf_counter()
    model.train(datamodule=datamodule, **training(n_epochs))
    seconds = time.perf_counter() - began
    latent = model.get_latent_representation(dataloader=datamodule.inference_dataloader())
    waited = datamodule.parts["train"].stats().consumer_wait_s
    return latent, datamodule.parts["train"].obs_joinids, {"train_s": seconds, "waited_s": waited}


def embed_by_anndata(
    cells: Any, train: np.ndarray, seed: int, n_epochs: int
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    import scvi

    scvi.model.SCVI.setup_anndata(cells)
    own = cells[train].copy()
    scvi.model.SCVI.setup_anndata(own)
    scvi.settings.seed = seed
    model = scvi.model.SCVI(own)
    began = time.perf_counter()
    model.train(train_size=1.0, **training(n_epochs))
    return model.get_latent_representation(cells), train, {"train_s": time.perf_counter() - began}


def training(n_epochs: int) -> dict[str, Any]:
    return {"max_epochs": n_epochs, "accelerator": "cpu", "enable_progress_bar": False, "logger": False}


def knn_accuracy(latent: np.ndarray, labels: np.ndarray, train: np.ndarray) -> float:
    from sklearn.neighbors import KNeighborsClassifier

    held_out = np.setdiff1d(np.arange(len(labels)), train)
    neighbours = KNeighborsClassifier(N_NEIGHBOURS).fit(latent[train], labels[train])
    return float(neighbours.score(latent[held_out], labels[held_out]))


def run(path: str, *, n_seeds: int, n_epochs: int, store: str = "soma") -> list[dict[str, Any]]:
    import anndata

    from cellfeed import ExperimentDataset

    records = []
    with tempfile.TemporaryDirectory() as folder:
        uri = str(Path(folder) / f"cells.{store}")
        cells = write_store(anndata.read_h5ad(path), uri)
        chosen = cells[:, choose_genes(cells.X)].copy()
        labels = cells.obs[LABEL].astype(str).to_numpy()
        for seed in range(n_seeds):
            through = {}
            through["cellfeed"] = embed_by_cellfeed(uri, list(chosen.var_names), seed, n_epochs)
            train = through["cellfeed"][1]
            through["anndata"] = embed_by_anndata(chosen, train, seed, n_epochs)
            for name, (latent, part, timing) in through.items():
                assert latent.shape[0] == len(labels) == ExperimentDataset(uri, seed=0).shape[0]
                records.append(
                    {
                        "path": name,
                        "seed": seed,
                        "n_epochs": n_epochs,
                        "accuracy": knn_accuracy(latent, labels, part),
                        **timing,
                    }
                )
                print(json.dumps(records[-1]), flush=True)
    return records


def summary(records: list[dict[str, Any]]) -> str:
    lines = []
    for path in ("anndata", "cellfeed"):
        own = [record for record in records if record["path"] == path]
        accuracy = [record["accuracy"] for record in own]
        seconds = statistics.median(record["train_s"] for record in own)
        lines.append(
            f"{path:9} accuracy {statistics.mean(accuracy):.4f} ({min(accuracy):.4f}..{max(accuracy):.4f}), "
            f"{seconds:.1f} s of training"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cells", help="zheng_facs_pbmc.h5ad")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--store", choices=("soma", "zarr"), default="soma", help="what cellfeed reads")
    parser.add_argument("--out", help="append records to this file")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    records = run(given.cells, n_seeds=given.seeds, n_epochs=given.epochs, store=given.store)
    if given.out:
        origin = {"commit": commit(), "versions": versions(PACKAGES)}
        for record in records:
            append(Path(given.out), {**record, **origin})
    print(summary(records))


if __name__ == "__main__":
    main()
