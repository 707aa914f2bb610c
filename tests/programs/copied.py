"""Trains with a local copy, or writes a copy, in processes that are killed at random moments, one after another.

python -m tests.programs.copied URI COPY FOLDER '{"n_kills": 20, "seed": 0, "writes": false}'

Each process is a fork of this one, which has loaded everything. A process that trains saves its state and the cells
that it has received after each step, as :mod:`tests.programs.killed` does, and continues from the state of the one
before it.
"""

import contextlib
import json
import os
import random
import signal
import sys
import time
from functools import partial
from pathlib import Path

import cellfeed
from tests.support.copies import describe, make_layout_small
from tests.support.training import train

EPOCHS = 3

STEP_S = 0.02


def make_dataset(uri, **options):
    return cellfeed.ExperimentDataset(
        uri, obs_column_names=["soma_joinid"], batch_size=5, soma_chunk_size=6, shuffle_chunk_count=4, **options
    )


def train_with_copy(uri, copy, folder, step_s, begun):
    dataset = make_dataset(uri, seed=11, local_copy=copy)

    def receive(minibatch):
        begun()
        return describe(minibatch)

    train(dataset, dataset, folder / "state.json", EPOCHS, receive, pause_s=lambda epoch: step_s if epoch == 0 else 0)


def write(uri, copy, step_s, begun):
    from cellfeed.sources.anndata.copies import shard_writer

    write_all = shard_writer.write_all

    def slowly(file, data):
        begun()
        write_all(file, data)
        time.sleep(step_s / 4)

    shard_writer.write_all = slowly
    if not copy.exists():
        make_dataset(uri, seed=0).write_copy(copy)
    begun()


def begin(work):
    """Do it in a fork; return the process when it has read the first cells, or has ended."""
    reading, writing = os.pipe()

    def notify():
        with contextlib.suppress(BrokenPipeError):
            os.write(writing, b".")

    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            work(notify)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writing)
    os.read(reading, 1)
    os.close(reading)
    return child


def main():
    uri, copy, folder, options = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4])
    make_layout_small()
    work = partial(write, uri, copy) if options["writes"] else partial(train_with_copy, uri, copy, folder)
    chance = random.Random(options["seed"])
    kills = 0
    while True:
        child = begin(partial(work, STEP_S))
        if kills < options["n_kills"]:
            time.sleep(chance.uniform(0, 3 * STEP_S))
            os.kill(child, signal.SIGKILL)
            kills += 1
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
    assert kills == options["n_kills"], "the program ended before it was killed"


if __name__ == "__main__":
    main()
