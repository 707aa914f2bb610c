"""A data module for scvi-tools: ``pip install "cellfeed[scvi]"``.

::

    datamodule = cellfeed.scvi.setup(scvi.model.SCVI, "cells.zarr", batch_key="donor_id", n_top_genes=2000, seed=0)
    model = scvi.model.SCVI(registry=datamodule.registry)
    model.train(datamodule=datamodule, max_epochs=20)
    latent = model.get_latent_representation(dataloader=datamodule.inference_dataloader())
    cellfeed.write_obsm(uri, "X_scVI", datamodule.dataset.obs_joinids, latent)

    model.save("model", datamodule=datamodule)
    query = SCVIDataModule.from_reference("model", other_experiment)      # genes, categories, covariates of the model
    model = cellfeed.scvi.load(scvi.model.SCVI, "model", query)
    latent = model.get_latent_representation(dataloader=query.inference_dataloader())

Under ``torchrun``, each process trains the same model on a part of each epoch, and embeds a range of the cells::

    model.train(datamodule=datamodule, devices=2, strategy="ddp_find_unused_parameters_true")
    loader = datamodule.inference_dataloader()
    latent = model.get_latent_representation(dataloader=loader)
    joinids, latent = cellfeed.gather_ordered(loader.joinids, latent)           # all cells, on every rank
"""

import importlib.util

from cellfeed.errors import MissingDependencyError

if importlib.util.find_spec("scvi") is None:
    raise MissingDependencyError('cellfeed.scvi needs scvi-tools, which is not installed: pip install "cellfeed[scvi]"')

from cellfeed.scvi.datamodule import SCVIDataModule
from cellfeed.scvi.models import load, load_query_data
from cellfeed.scvi.preparation import setup
from cellfeed.scvi.tensors import InferenceTensors

__all__ = ["InferenceTensors", "SCVIDataModule", "load", "load_query_data", "setup"]
