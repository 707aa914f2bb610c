"""Train a classifier on two processes with DistributedDataParallel; stop in the middle of an epoch and resume.

torchrun --nproc-per-node 2 examples/train_torchrun.py                          # the 700 cells of `cellfeed demo`
torchrun --nproc-per-node 2 examples/train_torchrun.py URI --label cell_type
torchrun --nproc-per-node 2 examples/train_torchrun.py --checkpoint run.pt --stop-at 12    # then without --stop-at
"""

import argparse
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import cellfeed
from cellfeed.datasets import pbmc700
from cellfeed.transforms import Log1p


def main(uri, label, n_epochs, checkpoint, stop_at):
    dataset = cellfeed.ExperimentDataset(
        uri or pbmc700(),  # each process writes its own copy
        obs_column_names=[label, "soma_joinid"],
        batch_size=32,
        seed=0,  # the same on all ranks, so that they divide one order
        transform=Log1p(),
    )
    train, test = dataset.random_split([0.8, 0.2], seed=0, stratify=label)
    loader = cellfeed.experiment_dataloader(train)  # finds its rank itself
    torch.manual_seed(0)
    n_genes, n_labels = dataset.shape[1], len(dataset.obs_encoders[label].classes_)
    model = torch.nn.Sequential(torch.nn.LayerNorm(n_genes), torch.nn.Linear(n_genes, n_labels))
    model = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    saved = {"model": model, "optimizer": optimizer, "loader": loader}
    if checkpoint and checkpoint.exists():
        states = torch.load(checkpoint, weights_only=True)
        for name, part in saved.items():
            part.load_state_dict(states[name])
    n_steps = 0
    while train.epoch < n_epochs:
        epoch, joinids, losses = train.epoch, [], []
        for X, obs in loader:
            loss = cross_entropy(model(X), obs[:, 0], reduction="none")
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
            joinids.append(obs[:, 1])
            losses.append(loss.detach())
            n_steps += 1
            if checkpoint and n_steps % 5 == 0 and dist.get_rank() == 0:  # its state is valid for all ranks
                torch.save({name: part.state_dict() for name, part in saved.items()}, checkpoint)
            if n_steps == stop_at:
                return
        show(f"epoch {epoch}: loss", joinids, losses)
    evaluate(model, test)


@torch.no_grad()
def evaluate(model, test):
    """Predict the test cells: each rank reads a part of them, in the order of the joinids."""
    joinids, correct = [], []
    for X, obs, ids in cellfeed.inference_dataloader(test):
        joinids.append(ids)
        correct.append(model(X).argmax(dim=1) == obs[:, 0])
    show("test: accuracy", joinids, correct)


def show(what, joinids, values):
    """Print the mean over the cells of all ranks; a cell that was yielded twice would be an error."""
    cells, values = cellfeed.gather_ordered(joinids, values)
    if dist.get_rank() == 0:
        print(f"{what} {values.mean():.6f} over {len(cells)} cells", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("uri", nargs="?", help="a SOMA experiment")
    parser.add_argument("--label", default="bulk_labels", help="the column of obs to predict")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--checkpoint", type=Path, help="a file to save to every 5 steps and to resume from")
    parser.add_argument("--stop-at", type=int, help="end after this number of steps, as if killed")
    arguments = parser.parse_args()
    dist.init_process_group("gloo")  # "nccl" for GPUs
    main(arguments.uri, arguments.label, arguments.epochs, arguments.checkpoint, arguments.stop_at)
    # PyTorch aborts a process that exits while a thread of Gloo still frees tensors: wait for it and for other ranks.
    dist.barrier()
    time.sleep(0.1)
    dist.destroy_process_group()
