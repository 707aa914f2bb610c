"""Trains under torchrun with a local copy, and writes what each rank received in each epoch, and from where.

torchrun --standalone --nproc-per-node 2 -m tests.programs.copying URI FOLDER WORKERS
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import cellfeed
from tests.programs import end_ranks

EPOCHS = 4


def main():
    uri, folder, workers = sys.argv[1:]
    dataset = cellfeed.ExperimentDataset(
        uri,
        obs_column_names=["soma_joinid"],
        seed=3,
        batch_size=8,
        rank_remainder="pad",
        local_copy=Path(folder, "copy"),
    )
    dist.init_process_group("gloo")
    model = DistributedDataParallel(torch.nn.Linear(dataset.shape[1], 1))
    loader = cellfeed.experiment_dataloader(dataset, num_workers=int(workers), persistent_workers=workers != "0")
    record = []
    for _ in range(EPOCHS):
        received: list[int] = []
        for X, obs, mask in loader:
            if not received:
                medium = dataset.state_dict()["fingerprint"].get("medium", "source")
            model(X).sum().backward()
            received += obs[mask, 0].tolist()
        record.append({"medium": medium, "received": received})
        dist.barrier()  # the parts of all ranks are complete
    Path(folder, f"rank{dist.get_rank()}.json").write_text(json.dumps(record))
    end_ranks()


if __name__ == "__main__":
    main()
