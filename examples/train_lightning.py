"""Train a classifier with Lightning on two processes: validate, checkpoint, resume, predict.

python examples/train_lightning.py                                              # the 700 cells of `cellfeed demo`
python examples/train_lightning.py URI --label cell_type --checkpoints FOLDER   # a second run resumes within the epoch
"""

import argparse
import time
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn.functional import cross_entropy

import cellfeed
from cellfeed.datasets import pbmc700
from cellfeed.lightning import ExperimentDataModule
from cellfeed.transforms import Log1p


class Classifier(pl.LightningModule):
    def __init__(self, n_genes, n_labels):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.LayerNorm(n_genes), torch.nn.Linear(n_genes, n_labels))
        self.joinids, self.losses = [], []

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)

    def training_step(self, batch, batch_idx):
        X, obs = batch
        losses = cross_entropy(self.layers(X), obs[:, 0], reduction="none")
        self.joinids.append(obs[:, 1])
        self.losses.append(losses.detach())
        return losses.mean()

    def on_train_epoch_end(self):
        cells, losses = cellfeed.gather_ordered(self.joinids, self.losses)  # a cell yielded twice is an error
        self.print(f"epoch {self.current_epoch}: loss {losses.mean():.6f} over {len(cells)} cells")
        self.joinids, self.losses = [], []

    def validation_step(self, batch, batch_idx):
        X, obs = batch
        loss = cross_entropy(self.layers(X), obs[:, 0])
        self.log("validation_loss", loss, batch_size=len(obs), sync_dist=True, prog_bar=True)

    def predict_step(self, batch, batch_idx):
        return batch.joinids, self.layers(batch.X).argmax(dim=1) == batch.obs[:, 0]


def main(uri, label, n_epochs, folder):
    datamodule = ExperimentDataModule(
        uri or pbmc700(),  # each process writes its own copy
        split=[0.8, 0.1, 0.1],
        stratify=label,
        predict="test",
        obs_column_names=[label, "soma_joinid"],
        batch_size=32,
        seed=0,  # the same on all ranks, so that they divide one order
        transform=Log1p(),
    )
    pl.seed_everything(0)
    model = Classifier(datamodule.n_vars, len(datamodule.obs_encoders[label].classes_))
    saving = [ModelCheckpoint(folder, every_n_train_steps=5, save_last=True)] if folder else []
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=n_epochs, callbacks=saving,
        enable_checkpointing=bool(folder), logger=False,
    )  # fmt: skip
    last = folder / "last.ckpt" if folder else None
    trainer.fit(model, datamodule=datamodule, ckpt_path=last if last and last.exists() else None)
    predictions = trainer.predict(model, datamodule=datamodule)
    cells, correct = cellfeed.gather_ordered(*zip(*predictions, strict=True))  # of all ranks, by joinid
    if trainer.is_global_zero:
        print(f"test: accuracy {correct.mean():.6f} over {len(cells)} cells")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("uri", nargs="?", help="a SOMA experiment")
    parser.add_argument("--label", default="bulk_labels", help="the column of obs to predict")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--checkpoints", type=Path, help="a folder to save to every 5 steps and to resume from")
    arguments = parser.parse_args()
    main(arguments.uri, arguments.label, arguments.epochs, arguments.checkpoints)
    # PyTorch aborts a process that exits while a thread of Gloo still frees tensors: wait for it and for other ranks.
    dist.barrier()
    time.sleep(0.1)
    dist.destroy_process_group()
