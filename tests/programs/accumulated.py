"""Trains with Accelerate and accumulates gradients: prints the cells received and the steps of the optimizer.

python -m tests.programs.accumulated URI
"""

import json
import sys

import torch
from accelerate import Accelerator

import cellfeed


def main():
    uri = sys.argv[1]
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    dataset = cellfeed.ExperimentDataset(uri, obs_column_names=["soma_joinid"], seed=3, batch_size=8)
    train, test = dataset.random_split([0.8, 0.2])
    model = torch.nn.Linear(dataset.shape[1], 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    loaders = [cellfeed.experiment_dataloader(part) for part in (train, test)]
    model, optimizer, loader, evaluation = accelerator.prepare(model, optimizer, *loaders)
    steps, metrics = [], []
    for epoch in range(2):
        if epoch == 1:  # the epoch is left after its first minibatch, and resumed from its state
            next(iter(loader))
            loader.load_state_dict(loader.state_dict())
        for k, (X, obs) in enumerate(loader):
            with accelerator.accumulate(model):
                accelerator.backward(model(X).sum())
                optimizer.step()
                optimizer.zero_grad()
            steps += [(epoch, k)] if accelerator.sync_gradients else []
            if k == 1:  # a second loader inside the loop of the first
                metrics.append([j for X, obs in evaluation for j in accelerator.gather_for_metrics(obs)[:, 0].tolist()])
        assert not accelerator.gradient_state.in_dataloader
    print(json.dumps({"steps": steps, "metrics": metrics, "test": test.obs_joinids.tolist()}))


if __name__ == "__main__":
    main()
