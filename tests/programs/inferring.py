"""Under torchrun: every rank infers its cells with a model that synchronises buffers, and writes the gathered results.

torchrun --standalone --nproc-per-node 2 -m tests.programs.inferring URI FOLDER
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
    uri, folder = sys.argv[1:]
    dataset = cellfeed.ExperimentDataset(uri, batch_size=10)
    dist.init_process_group("gloo")
    model = DistributedDataParallel(torch.nn.BatchNorm1d(dataset.shape[1])).eval()
    loader = cellfeed.inference_dataloader(dataset)
    joinids, sums = [], []
    for X, _, ids in loader:
        with torch.no_grad():
            model(X)  # broadcasts buffers: hangs where ranks make different numbers of steps
        joinids.append(ids)
        sums.append(X.sum(dim=1))
    ids, values = cellfeed.gather_ordered(joinids, sums)
    record = {"n_minibatches": len(sums), "joinids": ids.tolist(), "sums": values.tolist()}
    Path(folder, f"rank{dist.get_rank()}.json").write_text(json.dumps(record))
    end_ranks()


if __name__ == "__main__":
    main()
