"""Train a classifier with Ray Train on two workers of this machine; Ray saves the checkpoints.

python examples/train_ray.py                                    # the 700 cells of `cellfeed demo`
python examples/train_ray.py URI --label cell_type --storage FOLDER      # a second run with more epochs resumes
"""

import argparse
import os
import tempfile
from pathlib import Path

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # one machine: listen on 127.0.0.1 only

import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer, prepare_model
from torch.nn.functional import cross_entropy

import cellfeed
from cellfeed.datasets import pbmc700
from cellfeed.transforms import Log1p


def train_on_a_worker(config):
    label = config["label"]
    dataset = cellfeed.ExperimentDataset(
        config["uri"],
        obs_column_names=[label, "soma_joinid"],
        batch_size=32,
        seed=0,  # the same on all workers, so that they divide one order
        transform=Log1p(),
    )
    train, _ = dataset.random_split([0.8, 0.2], seed=0, stratify=label)
    loader = cellfeed.experiment_dataloader(train)  # finds its rank itself: no prepare_data_loader, no Ray Data
    torch.manual_seed(0)
    n_genes, n_labels = dataset.shape[1], len(dataset.obs_encoders[label].classes_)
    model = prepare_model(torch.nn.Sequential(torch.nn.LayerNorm(n_genes), torch.nn.Linear(n_genes, n_labels)))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    saved = {"model": model, "optimizer": optimizer, "loader": loader}
    if checkpoint := ray.train.get_checkpoint():  # after the loss of a worker, or when a run is resumed
        with checkpoint.as_directory() as folder:
            states = torch.load(Path(folder, "state.pt"), weights_only=True)
        for name, part in saved.items():
            part.load_state_dict(states[name])
    while train.epoch < config["n_epochs"]:
        epoch, joinids, losses = train.epoch, [], []
        for X, obs in loader:
            loss = cross_entropy(model(X), obs[:, 0], reduction="none")
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
            joinids.append(obs[:, 1])
            losses.append(loss.detach())
        report(epoch, saved, *cellfeed.gather_ordered(joinids, losses))  # a cell yielded twice is an error


def report(epoch, saved, cells, losses):
    """Report the metrics of an epoch to Ray, with a checkpoint of worker 0: all workers are at the same step."""
    metrics = {"epoch": epoch, "loss": float(losses.mean()), "n_cells": len(cells)}
    checkpoint = None
    with tempfile.TemporaryDirectory() as folder:
        if ray.train.get_context().get_world_rank() == 0:
            torch.save({name: part.state_dict() for name, part in saved.items()}, Path(folder, "state.pt"))
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report(metrics, checkpoint=checkpoint)


def main(uri, label, n_epochs, storage):
    ray.init(num_cpus=2, include_dashboard=False)
    trainer = TorchTrainer(
        train_on_a_worker,
        train_loop_config={"uri": uri, "label": label, "n_epochs": n_epochs},
        scaling_config=ray.train.ScalingConfig(num_workers=2),
        run_config=ray.train.RunConfig(name="cellfeed", storage_path=storage),  # a run of this name is resumed
    )
    for _, row in trainer.fit().metrics_dataframe.iterrows():
        print(f"epoch {row['epoch']:.0f}: loss {row['loss']:.6f} over {row['n_cells']:.0f} cells")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("uri", nargs="?", help="a SOMA experiment")
    parser.add_argument("--label", default="bulk_labels", help="the column of obs to predict")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--storage", help="a folder for Ray's checkpoints; a run with checkpoints in it is resumed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        uri, storage = arguments.uri or pbmc700(), arguments.storage or scratch
        main(uri, arguments.label, arguments.epochs, storage)
