"""Under torchrun: Lightning trains, validates, tests and predicts on 101 cells; each rank writes its cells.

torchrun --standalone --nproc-per-node 2 -m tests.programs.lit URI FOLDER
"""

import json
import sys
from pathlib import Path

import torch

import cellfeed
from cellfeed.lightning import ExperimentDataModule, lightning
from tests.programs import end_ranks

SPLIT = (60 / 101, 21 / 101, 20 / 101)
"""Of 21 cells, in minibatches of 5, one rank would make three steps and the other two if none were left out."""


class Model(lightning.LightningModule):
    def __init__(self, n_vars):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.BatchNorm1d(n_vars), torch.nn.Linear(n_vars, 1))
        self.record = {"train": [], "validation": [], "test": []}

    def training_step(self, batch, batch_idx):
        self.record["train"].append((self.current_epoch, batch.obs[:, 0].tolist()))
        return self.layers(batch.X).sum()

    def validation_step(self, batch, batch_idx):
        self.layers(batch.X)
        self.record["validation"].append(batch.obs[:, 0].tolist())

    def test_step(self, batch, batch_idx):
        self.layers(batch.X)
        self.record["test"].append(batch.obs[:, 0].tolist())

    def predict_step(self, batch, batch_idx):
        self.layers(batch.X)
        return batch.joinids

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-9)


def main():
    uri, folder = sys.argv[1:]
    datamodule = ExperimentDataModule(uri, obs_column_names=["soma_joinid"], batch_size=5, seed=1, split=SPLIT)
    model = Model(datamodule.n_vars)
    trainer = lightning.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, num_sanity_val_steps=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, datamodule=datamodule)
    trainer.test(model, datamodule=datamodule, verbose=False)
    predicted = trainer.predict(model, datamodule=datamodule)
    joinids, _ = cellfeed.gather_ordered(predicted, predicted)
    record = {**model.record, "predicted": joinids.tolist()}
    Path(folder, f"rank{trainer.global_rank}.json").write_text(json.dumps(record))
    end_ranks()


if __name__ == "__main__":
    main()
