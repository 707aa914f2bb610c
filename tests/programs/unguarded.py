"""Starts workers when it is imported. Each worker imports it, too, and so cannot begin.

python tests/programs/unguarded.py URI
"""

import sys

import numpy as np

import cellfeed


class Shift:
    """A transform that is larger than the pipe to a worker."""

    def __init__(self):
        self.by = np.zeros(1 << 20)

    def __call__(self, X):
        return X + float(self.by[0])


dataset = cellfeed.ExperimentDataset(sys.argv[1], transform=Shift(), seed=0)
try:
    for _ in cellfeed.experiment_dataloader(dataset, num_workers=1):
        pass
except cellfeed.ReadError as error:
    print(error)
