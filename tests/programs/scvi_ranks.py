"""Under torchrun: scVI is trained on two ranks, and embeds all cells; each rank writes the cells that it received.

torchrun --standalone --nproc-per-node 2 -m tests.programs.scvi_ranks URI FOLDER
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import scvi

import cellfeed
from cellfeed.scvi import SCVIDataModule
from tests.programs import end_ranks

EPOCHS = 2
PARAMETERS = {"batch_key": "donor", "batch_size": 25, "seed": 0, "split": {"train": 0.8, "validation": 0.2}}


class Noting(SCVIDataModule):
    """Records the cells of each epoch."""

    def __init__(self, *args, **parameters):
        super().__init__(*args, **parameters)
        self.met = {"train": [[] for _ in range(EPOCHS)], "validate": [[] for _ in range(EPOCHS)]}

    def on_before_batch_transfer(self, batch, dataloader_idx):
        self.met[self.trainer.state.stage.value][self.trainer.current_epoch] += batch.joinids.tolist()
        return super().on_before_batch_transfer(batch, dataloader_idx)


def main():
    warnings.simplefilter("ignore")
    uri, folder = sys.argv[1], Path(sys.argv[2])
    scvi.settings.seed = 0
    datamodule = Noting(uri, **PARAMETERS)
    model = scvi.model.SCVI(adata=None, registry=datamodule.registry, n_latent=4, n_hidden=16)
    model.train(
        datamodule=datamodule, max_epochs=EPOCHS, accelerator="cpu", devices=2, logger=False, check_val_every_n_epoch=1,
        strategy="ddp_find_unused_parameters_true", enable_progress_bar=False, num_sanity_val_steps=0,
    )  # fmt: skip
    loader = datamodule.inference_dataloader()
    latent = model.get_latent_representation(dataloader=loader)
    joinids, whole = cellfeed.gather_ordered(loader.joinids, latent)
    rank = model.trainer.global_rank
    record = {**datamodule.met, "own": len(latent), "joinids": joinids.tolist()}
    (folder / f"rank{rank}.json").write_text(json.dumps(record))
    np.save(folder / f"rank{rank}.npy", whole)
    if rank == 0:
        model.save(folder / "model", datamodule=datamodule)
        alone = SCVIDataModule(uri, **PARAMETERS, rank=0, world_size=1)
        np.save(folder / "alone.npy", model.get_latent_representation(dataloader=alone.inference_dataloader()))
    end_ranks()


if __name__ == "__main__":
    main()
