"""Trains under torchrun, for each number of workers two epochs, and writes what each rank received.

torchrun --standalone --nproc-per-node 2 -m tests.programs.ddp URI FOLDER '{"rank_remainder": "drop"}' 0 1 2
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import cellfeed
from tests.programs import end_ranks


def main():
    uri, folder, parameters, *workers = sys.argv[1:]
    dataset = cellfeed.ExperimentDataset(uri, obs_column_names=["soma_joinid"], seed=3, **json.loads(parameters))
    dist.init_process_group("gloo")  # after the dataset was made: ranks are found when iteration begins
    rank = dist.get_rank()
    model = DistributedDataParallel(torch.nn.Linear(dataset.shape[1], 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    record = {}
    for num_workers in map(int, workers):
        loader = cellfeed.experiment_dataloader(dataset, num_workers=num_workers, persistent_workers=num_workers == 2)
        dataset.set_epoch(0)
        epochs = []
        for _ in range(2):
            length, received = len(loader), []
            for minibatch in loader:
                optimizer.zero_grad()
                model(minibatch.X).sum().backward()  # hangs where ranks take different numbers of steps
                optimizer.step()
                mask = getattr(minibatch, "mask", None)
                received.append(minibatch.obs[:, 0].tolist() if mask is None else minibatch.obs[mask, 0].tolist())
            epochs.append({"length": length, "received": received})
        record[num_workers] = epochs
    Path(folder, f"rank{rank}.json").write_text(json.dumps(record))
    end_ranks()


if __name__ == "__main__":
    main()
