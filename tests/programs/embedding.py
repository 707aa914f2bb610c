"""Loads the models that a test saved, embeds their cells of the given joinids, and writes what came out.

python -m tests.programs.embedding URI FOLDER
"""

import sys
import warnings
from pathlib import Path

import numpy as np
import scvi
import tiledbsoma as soma

import cellfeed.scvi


def main():
    warnings.simplefilter("ignore")
    uri, folder = sys.argv[1], Path(sys.argv[2])
    for name in ("plain", "full"):
        joinids = np.load(folder / f"{name}.joinids.npy")
        datamodule = cellfeed.scvi.SCVIDataModule.from_reference(
            folder / name, uri, obs_query=soma.AxisQuery(coords=(joinids,)), batch_size=50
        )
        assert datamodule.dataset.obs_joinids.tolist() == joinids.tolist()
        models = {"own": cellfeed.scvi.load(scvi.model.SCVI, folder / name, datamodule)}
        if name == "plain":
            models["scvi"] = scvi.model.SCVI.load(folder / name, adata=False, accelerator="cpu")
        for path, model in models.items():
            latent = model.get_latent_representation(dataloader=datamodule.inference_dataloader())
            np.save(folder / f"{name}.{path}.npy", latent)


if __name__ == "__main__":
    main()
