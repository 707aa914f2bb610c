"""Trains with Accelerate under torchrun: a prepared loader, saved in the middle of an epoch and restored.

torchrun --standalone --nproc-per-node 2 -m tests.programs.accelerated URI FOLDER
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

import cellfeed
from tests.programs import end_ranks


def received(minibatches, accelerator, model, optimizer, n=None):
    cells = []
    for k, (X, obs) in enumerate(minibatches):
        optimizer.zero_grad()
        assert {X.device.type, obs.device.type} == {accelerator.device.type}
        accelerator.backward(model(X).sum())
        optimizer.step()
        cells.append(obs[:, 0].tolist())
        if n is not None and k + 1 == n:
            break
    return cells


def main():
    uri, folder = sys.argv[1], Path(sys.argv[2])
    accelerator = Accelerator(cpu=True)
    dataset = cellfeed.ExperimentDataset(uri, obs_column_names=["soma_joinid"], seed=3, batch_size=8)
    model = torch.nn.Linear(dataset.shape[1], 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    loader = cellfeed.experiment_dataloader(dataset, device=accelerator.device)
    model, optimizer, prepared = accelerator.prepare(model, optimizer, loader)
    run = (accelerator, model, optimizer)
    whole = received(prepared, *run)
    dataset.set_epoch(0)
    iterator = iter(prepared)
    first = received(iterator, *run, n=2)
    accelerator.save_state(str(folder / "checkpoint"))
    accelerator.wait_for_everyone()  # what rank 0 writes, rank 1 is about to read
    del iterator
    dataset.set_epoch(7)
    accelerator.load_state(str(folder / "checkpoint"))
    rest = received(prepared, *run)
    refused = None
    try:  # Accelerate would shard any other loader a second time
        plain = accelerator.prepare(torch.utils.data.DataLoader(dataset, batch_size=None))
        list(plain)
    except cellfeed.CellfeedError as error:
        refused = str(error)
    record = {"whole": whole, "continued": first + rest, "same": prepared is loader, "refused": refused}
    (folder / f"rank{accelerator.process_index}.json").write_text(json.dumps(record))
    end_ranks()


if __name__ == "__main__":
    main()
