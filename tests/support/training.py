"""A training loop that saves its state and what it has received after each step, and continues from them."""

import json
import os
import time


def train(dataset, loader, saved, n_epochs, describe, pause_s):
    """Train from the state in the file ``saved``, if it is there, to the end.

    ``describe`` receives each minibatch and returns what the history keeps of it; ``pause_s`` receives the epoch.
    """
    history = []
    if saved.exists():
        checkpoint = json.loads(saved.read_text())
        history = checkpoint["history"]
        loader.load_state_dict(checkpoint["state"])
    while dataset.epoch < n_epochs:
        epoch = dataset.epoch
        for minibatch in loader:
            history.append([epoch, describe(minibatch)])
            scratch = saved.with_suffix(".tmp")
            scratch.write_text(json.dumps({"state": loader.state_dict(), "history": history}))
            os.replace(scratch, saved)  # noqa: PTH105 - as a training loop would: a state is whole or not there
            time.sleep(pause_s(epoch))
