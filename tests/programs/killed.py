"""Trains until it is killed: after each step it saves its state and the cells that it has received so far.

python -m tests.programs.killed URI FOLDER '{"num_workers": 0}'
"""

import json
import os
import sys
import time
from pathlib import Path

import cellfeed

EPOCHS = 3


def main():
    uri, folder, options = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    dataset = cellfeed.ExperimentDataset(
        uri, obs_column_names=["soma_joinid"], seed=11, batch_size=5, soma_chunk_size=6, shuffle_chunk_count=4
    )
    loader = cellfeed.experiment_dataloader(dataset, num_workers=options["num_workers"])
    saved = folder / "state.json"
    history = []
    if saved.exists():
        checkpoint = json.loads(saved.read_text())
        history = checkpoint["history"]
        loader.load_state_dict(checkpoint["state"])
    while dataset.epoch < EPOCHS:
        epoch = dataset.epoch
        for minibatch in loader:
            history.append([epoch, minibatch.obs[:, 0].tolist()])
            scratch = folder / "state.tmp"
            scratch.write_text(json.dumps({"state": loader.state_dict(), "history": history}))
            os.replace(scratch, saved)  # noqa: PTH105 - as a training loop would: a state is whole or not there
            time.sleep(options.get("sleep_s", 0))
    (folder / "done").touch()


if __name__ == "__main__":
    main()
