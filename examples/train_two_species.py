"""Train a classifier of cell types on two species at once: genes are mapped by orthologs, cells come in exact shares.

python examples/train_two_species.py                  # blood cells of `cellfeed demo`, as if of two species
python examples/train_two_species.py HUMAN MOUSE --orthologs orthologs.csv --label cell_type

The table of orthologs has the columns "mouse" and "human", with names of genes.
"""

import argparse
import tempfile
from pathlib import Path

import pandas as pd
import torch
from torch.nn.functional import cross_entropy

import cellfeed
from cellfeed.datasets import pbmc700_anndata
from cellfeed.transforms import Compose, Log1p, NormalizeTotal

PARAMETERS = {"batch_size": 50, "seed": 0, "transform": Compose([NormalizeTotal(1e3), Log1p()])}


def two_species_of_the_demo(folder):
    """Write the example cells to two files, the second with the style of mouse names; return arguments of main."""
    cells, datasets = pbmc700_anndata(), {}
    orthologs = {gene.capitalize(): gene for gene in cells.var_names[65:]}  # the first 65 genes have no ortholog
    for k, species in enumerate(["human", "mouse"]):
        own = cells[k::3].copy()
        own.var_names = [gene.capitalize() if k else gene for gene in own.var_names]
        own.write_h5ad(folder / f"{species}.h5ad")
        datasets[species] = cellfeed.ExperimentDataset(
            folder / f"{species}.h5ad", obs_column_names=["bulk_labels"], **PARAMETERS
        )
    return datasets, {"mouse": orthologs}, "bulk_labels"


def two_species(human, mouse, table, label):
    names = {"obs_column_names": [label], **PARAMETERS}
    datasets = {
        "human": cellfeed.ExperimentDataset(human, **names),
        "mouse": cellfeed.ExperimentDataset(mouse, **names),
    }
    return datasets, {"mouse": dict(pd.read_csv(table)[["mouse", "human"]].to_numpy())}, label


def main(datasets, orthologs, label, n_epochs):
    joined = cellfeed.join(datasets, shares={"human": 0.5, "mouse": 0.5}, orthologs=orthologs)
    print(joined)
    torch.manual_seed(0)
    n_types, n_species = len(joined.obs_encoders[label].classes_), len(joined.sources)
    species = torch.nn.Embedding(n_species, 64)
    genes, head = torch.nn.Linear(joined.shape[1], 64), torch.nn.Linear(64, n_types)
    optimizer = torch.optim.Adam([*species.parameters(), *genes.parameters(), *head.parameters()], lr=3e-3)
    for epoch in range(n_epochs):
        total, n_cells = 0.0, 0
        for X, obs in cellfeed.experiment_dataloader(joined):
            loss = cross_entropy(head(torch.relu(genes(X) + species(obs[:, -1]))), obs[:, 0])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total, n_cells = total + loss.item() * len(obs), n_cells + len(obs)
        print(f"epoch {epoch}: loss {total / n_cells:.4f} over {n_cells} cells", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("uris", nargs="*", help="the two species: experiments, AnnData in zarr, or .h5ad files")
    parser.add_argument("--orthologs", help="a table with the columns mouse and human")
    parser.add_argument("--label", default="cell_type", help="a column of obs that both have")
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.uris:
            given = two_species(*arguments.uris, arguments.orthologs, arguments.label)
        else:
            given = two_species_of_the_demo(Path(folder))
        main(*given, arguments.epochs)
