"""The picture of the front page: the composition of minibatches in the order of the store, and shuffled.

    python -m benchmarks.overview docs/overview.png

65,536 cells of 16 data sets, one after another; a minibatch in 16 is drawn.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.harness.stores import StoreSpec, write_store
from cellfeed import ExperimentDataset

SPEC = StoreSpec(n_obs=65_536, n_vars=2000, n_expressed=2000, nnz_per_cell=60, n_datasets=16)
EACH = 16
WAYS = {
    "shuffle=False": {"shuffle": False},
    'memory_budget="16 MiB"': {"memory_budget": "16 MiB"},
    'memory_budget="16 MiB", mixing=0.9': {"memory_budget": "16 MiB", "mixing": 0.9},
}


def labels_of_minibatches(uri: str, **options: object) -> np.ndarray:
    """int64, shape (n_minibatches, batch_size): the data set of each cell, ascending in each minibatch."""
    dataset = ExperimentDataset(uri, obs_column_names=["dataset_id"], batch_size=128, seed=0, drop_last=True, **options)
    return np.sort(np.stack([obs[:, 0].numpy() for _, obs in dataset][::EACH]), axis=1)


def draw(uri: str, picture: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(WAYS), figsize=(9.6, 3.2), sharey=True, layout="constrained")
    for axis, (name, options) in zip(axes, WAYS.items(), strict=True):
        labels = labels_of_minibatches(uri, **options)
        axis.imshow(labels, aspect="auto", interpolation="nearest")
        axis.set_title(name, family="monospace", size=9)
        axis.set_xticks([])
        axis.set_yticks([])
        for edge in np.arange(1, len(labels)) - 0.5:  # a minibatch is a row
            axis.axhline(edge, color="white", linewidth=0.8)
        axis.spines[:].set_visible(False)
    axes[0].set_ylabel("← minibatches of an epoch", size=9)
    figure.supxlabel("128 cells of each minibatch, coloured by data set", size=9)
    figure.savefig(picture, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_store(f"{folder}/cells.soma", SPEC)
        draw(f"{folder}/cells.soma", arguments.picture)


if __name__ == "__main__":
    main()
