"""Trains until it is killed: after each step it saves its state and the cells that it has received so far.

python -m tests.programs.killed URI FOLDER '{"num_workers": 0}'
"""

import json
import sys
from pathlib import Path

import cellfeed
from tests.support.training import train

EPOCHS = 3


def main():
    uri, folder, options = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    dataset = cellfeed.ExperimentDataset(
        uri, obs_column_names=["soma_joinid"], seed=11, batch_size=5, soma_chunk_size=6, shuffle_chunk_count=4
    )
    loader = cellfeed.experiment_dataloader(dataset, num_workers=options["num_workers"])
    train(
        dataset,
        loader,
        folder / "state.json",
        EPOCHS,
        describe=lambda minibatch: minibatch.obs[:, 0].tolist(),
        pause_s=lambda epoch: options.get("sleep_s", 0),
    )
    (folder / "done").touch()


if __name__ == "__main__":
    main()
