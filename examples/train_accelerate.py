"""Train a classifier with Accelerate on two processes; checkpoints include the place in the data.

torchrun --nproc-per-node 2 examples/train_accelerate.py                        # the 700 cells of `cellfeed demo`
torchrun --nproc-per-node 2 examples/train_accelerate.py URI --label cell_type --checkpoint FOLDER
accelerate launch examples/train_accelerate.py URI --label cell_type       # with the settings of `accelerate config`
"""

import argparse
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.nn.functional import cross_entropy

import cellfeed
from cellfeed.datasets import pbmc700
from cellfeed.transforms import Log1p


def main(accelerator, uri, label, n_epochs, checkpoint):
    dataset = cellfeed.ExperimentDataset(
        uri or pbmc700(),  # each process writes its own copy
        obs_column_names=[label, "soma_joinid"],
        batch_size=32,
        seed=0,  # the same on all ranks, so that they divide one order
        transform=Log1p(),
    )
    train, test = dataset.random_split([0.8, 0.2], seed=0, stratify=label)
    torch.manual_seed(0)
    n_genes, n_labels = dataset.shape[1], len(dataset.obs_encoders[label].classes_)
    model = torch.nn.Sequential(torch.nn.LayerNorm(n_genes), torch.nn.Linear(n_genes, n_labels))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    # The loader of each rank already yields the part of this rank. Accelerate leaves it unchanged and saves its state.
    loader = cellfeed.experiment_dataloader(train, device=accelerator.device)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    if checkpoint and checkpoint.exists():
        accelerator.load_state(str(checkpoint))
    while train.epoch < n_epochs:
        epoch, joinids, losses = train.epoch, [], []
        for X, obs in loader:
            loss = cross_entropy(model(X), obs[:, 0], reduction="none")
            optimizer.zero_grad()
            accelerator.backward(loss.mean())
            optimizer.step()
            joinids.append(obs[:, 1])
            losses.append(loss.detach())
        show(accelerator, f"epoch {epoch}: loss", joinids, losses)
        if checkpoint:  # any other step would also work
            accelerator.save_state(str(checkpoint))
    joinids, correct = [], []
    loader = cellfeed.inference_dataloader(test, device=accelerator.device)
    for X, obs, ids in loader:  # each rank reads a part, in the order of the joinids
        with torch.no_grad():
            predicted = model(X).argmax(dim=1)
        joinids.append(ids)
        correct.append(predicted == obs[:, 0])
    show(accelerator, "test: accuracy", joinids, correct)


def show(accelerator, what, joinids, values):
    """Print the mean over the cells of all ranks; a cell that was yielded twice would be an error."""
    cells, values = cellfeed.gather_ordered(joinids, values)
    accelerator.print(f"{what} {values.mean():.6f} over {len(cells)} cells", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("uri", nargs="?", help="a SOMA experiment")
    parser.add_argument("--label", default="bulk_labels", help="the column of obs to predict")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--checkpoint", type=Path, help="a folder to save to after each epoch and to resume from")
    arguments = parser.parse_args()
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    main(accelerator, arguments.uri, arguments.label, arguments.epochs, arguments.checkpoint)
    # PyTorch aborts a process that exits while a thread of Gloo still frees tensors: wait for it and for other ranks.
    accelerator.wait_for_everyone()
    time.sleep(0.1)
    accelerator.end_training()
