"""Ranks that only their main process knows: workers read an epoch, and each rank writes the cells that it received.

python -m tests.programs.ranks URI FOLDER spawn|ddp|ddp_spawn
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import cellfeed
from tests.programs import end_ranks

ENVIRONMENTS = {
    "spawn": {},
    "lightning": {"WORLD_SIZE": "2", "LOCAL_RANK": "{rank}", "NODE_RANK": "0"},
    "slurm": {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_ID": "0", "SLURM_PROCID": "{rank}"},
}


def note(folder, way, rank, length, minibatches):
    record = {"length": length, "received": [j for minibatch in minibatches for j in minibatch]}
    Path(folder, f"{way}{rank}.json").write_text(json.dumps({**record, "n_minibatches": len(minibatches)}))


def spawned(rank, dataset, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    for way, variables in ENVIRONMENTS.items():
        os.environ.update({name: value.format(rank=rank) for name, value in variables.items()})
        loader = cellfeed.experiment_dataloader(dataset, num_workers=1 if variables else 2)
        length = len(loader)
        note(folder, way, rank, length, [obs[:, 0].tolist() for _, obs in loader])
        for name in variables:
            del os.environ[name]
    end_ranks()


def fitted(strategy, dataset, folder):
    from tests.programs.lit_ranks import Model, lightning

    trainer = lightning.Trainer(
        accelerator="cpu", devices=2, strategy=strategy, max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Model(dataset.shape[1], folder, strategy), cellfeed.experiment_dataloader(dataset, num_workers=2))


def main():
    uri, folder, way = sys.argv[1:]
    dataset = cellfeed.ExperimentDataset(uri, obs_column_names=["soma_joinid"], batch_size=8, seed=3)
    if way == "spawn":
        torch.multiprocessing.spawn(spawned, (dataset, folder), nprocs=2)
    else:
        fitted(way, dataset, folder)


if __name__ == "__main__":
    main()
