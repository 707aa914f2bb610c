"""Train a small model that predicts the mean expression of perturbed cells from their matched controls.

The example data have no perturbation: the phase of the cell cycle stands for it, and cells in G1 are the controls.

python examples/train_perturbation.py    # the 700 cells of `cellfeed demo`
python examples/train_perturbation.py URI --perturbation gene --cell-type cell_type --control non-targeting
"""

import argparse

import torch
from torch import nn

import cellfeed
from cellfeed.datasets import pbmc700
from cellfeed.transforms import Compose, Log1p, NormalizeTotal


class Shift(nn.Module):
    """Adds to the mean of the controls a shift that depends on the perturbation and on this mean."""

    def __init__(self, n_perturbations, n_genes, width=64):
        super().__init__()
        self.perturbations = nn.Embedding(n_perturbations, width)
        self.encoder = nn.Linear(n_genes, width)
        self.decoder = nn.Linear(width, n_genes)

    def forward(self, control_mean, perturbation):
        hidden = torch.relu(self.encoder(control_mean) + self.perturbations(perturbation))
        return control_mean + self.decoder(hidden)


def set_mean(X, mask):
    """Return the mean of each set, without the cells that pad it: shape (n_sets, n_genes)."""
    weights = mask.unsqueeze(-1).to(X.dtype)
    return (X * weights).sum(dim=1) / weights.sum(dim=1)


def main(uri, perturbation, cell_type, control, set_size, n_epochs):
    dataset = cellfeed.ExperimentDataset(uri, transform=Compose([NormalizeTotal(1e3), Log1p()]), seed=0)
    sets = dataset.group_batches(
        by=[cell_type, perturbation], set_size=set_size, control=control, sets_per_batch=2, few_controls="repeat"
    )
    print(sets.plan())
    torch.manual_seed(0)
    model = Shift(len(sets.encoders[perturbation].classes_), dataset.shape[1])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for epoch in range(n_epochs):
        total, without, n_sets = 0.0, 0.0, 0
        for minibatch in sets:
            mean, control_mean = (set_mean(X, minibatch.mask) for X in (minibatch.X, minibatch.control_X))
            predicted = model(control_mean, minibatch.groups[:, -1])  # the perturbation is the last column of by
            loss = (predicted - mean).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total, n_sets = total + loss.item() * len(mean), n_sets + len(mean)
            without += (control_mean - mean).square().mean().item() * len(mean)
        print(
            f"epoch {epoch}: loss {total / n_sets:.4f} over {n_sets} sets; no shift {without / n_sets:.4f}", flush=True
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("uri", nargs="?", help="a SOMA experiment, an AnnData in zarr, or an .h5ad file")
    parser.add_argument("--perturbation", default="phase", help="the column of obs with the perturbation")
    parser.add_argument("--cell-type", default="bulk_labels", help="the column of obs in which controls match")
    parser.add_argument("--control", default="G1", help="the label of the controls")
    parser.add_argument("--set-size", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=6)
    arguments = parser.parse_args()
    main(
        arguments.uri or pbmc700(), arguments.perturbation, arguments.cell_type, arguments.control, arguments.set_size,
        arguments.epochs,
    )  # fmt: skip
