"""Trains on one rank of torchrun with a local copy: writes the cells of each epoch, and how many came from the copy.

torchrun --nproc-per-node 2 -m tests.programs.copied_ranks URI COPY FOLDER
"""

import json
import sys
from pathlib import Path

import torch.distributed as dist

from tests.programs import end_ranks
from tests.programs.copied import make_dataset
from tests.support.copies import describe, make_layout_small


def main():
    uri, copy, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    make_layout_small()
    dist.init_process_group("gloo")
    dataset = make_dataset(uri, seed=1, local_copy=copy)
    epochs, from_copy = [], []
    for _ in range(3):
        epochs.append([cell for minibatch in dataset for cell in describe(minibatch)])
        from_copy.append(dataset.stats().n_obs_from_copy)
        dist.barrier()
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps({"epochs": epochs, "from_copy": from_copy}))
    end_ranks()


if __name__ == "__main__":
    main()
