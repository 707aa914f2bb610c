"""Loads the models that a test saved, embeds their test cells, and writes the embeddings.

python -m tests.programs.embedding URI FOLDER PERMUTED FEWER

The seed of the split selects the same cells again. In stores with permuted or missing genes, joinids select them.
"""

import sys
import warnings
from pathlib import Path

import numpy as np
import scvi
import tiledbsoma as soma

import cellfeed
from cellfeed.scvi import SCVIDataModule, load

SPLIT = {"train": 0.7, "validation": 0.1, "test": 0.2}


def embed(model, datamodule, part="all"):
    return model.get_latent_representation(dataloader=datamodule.inference_dataloader(part))


def main():
    warnings.simplefilter("ignore")
    uri, folder, permuted, fewer = sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]
    for name in ("plain", "full"):
        joinids = np.load(folder / f"{name}.joinids.npy")
        again = SCVIDataModule.from_reference(folder / name, uri, split=SPLIT, batch_size=50)
        assert again.parts["test"].obs_joinids.tolist() == joinids.tolist()
        of_test = {"obs_query": soma.AxisQuery(coords=(joinids,)), "batch_size": 50}
        shuffled = SCVIDataModule.from_reference(folder / name, permuted, **of_test)
        model = load(scvi.model.SCVI, folder / name, again)
        np.save(folder / f"{name}.own.npy", embed(model, again, "test"))
        np.save(folder / f"{name}.permuted.npy", embed(model, shuffled))
        if name == "plain":
            by_scvi = scvi.model.SCVI.load(folder / name, adata=False, accelerator="cpu")
            np.save(folder / f"{name}.scvi.npy", embed(by_scvi, again, "test"))
        try:
            SCVIDataModule.from_reference(folder / name, fewer, **of_test)
        except cellfeed.SelectionError as error:
            (folder / f"{name}.refused").write_text(str(error))
        zeros = SCVIDataModule.from_reference(folder / name, fewer, missing_genes="zeros", **of_test)
        np.save(folder / f"{name}.zeros.npy", embed(load(scvi.model.SCVI, folder / name, zeros), zeros))


if __name__ == "__main__":
    main()
