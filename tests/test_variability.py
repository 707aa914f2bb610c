"""Highly variable genes are those that scanpy finds in memory."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy
import scipy.sparse as sp

import cellfeed
from cellfeed import ExperimentDataset, PlanError, SelectionError
from tests.support.stores import write_experiment

N, G = 400, 500


@pytest.fixture(scope="module")
def counts():
    """Genes of very different means, of which some vary from type to type; some are never seen."""
    rng = np.random.default_rng(0)
    mean = rng.lognormal(-1, 1.5, G) * (rng.random(G) > 0.05)
    fold = np.where(rng.random((4, G)) < 0.1, rng.lognormal(0, 2, (4, G)), 1)
    return sp.csr_matrix(rng.poisson(mean * fold[rng.integers(0, 4, N)]).astype(np.float32))


@pytest.mark.filterwarnings("ignore")
def test_genes_are_those_that_scanpy_finds(counts, tmp_path):
    """The same set for several numbers, most variable first; the dataset's transform has no influence."""
    uri = write_experiment(tmp_path / "cells.soma", counts, extent=64, column_extent=512)
    dataset = ExperimentDataset(uri, seed=0, batch_size=32, transform=lambda X: X * 0)
    adata = anndata.AnnData(counts.copy(), var=pd.DataFrame(index=[f"G{j}" for j in range(G)]))
    scanpy.pp.normalize_total(adata, target_sum=1e4)
    scanpy.pp.log1p(adata)
    for n_top_genes in (1, 20, 150):
        wanted = scanpy.pp.highly_variable_genes(adata, n_top_genes=n_top_genes, flavor="seurat", inplace=False)
        genes = cellfeed.highly_variable_genes(dataset, n_top_genes)
        assert set(genes) == set(adata.var_names[wanted["highly_variable"]])
        if n_top_genes == 20:
            dispersions = pd.Series(wanted["dispersions_norm"].to_numpy(), adata.var_names)[genes].to_numpy()
            assert (dispersions[:-1] >= dispersions[1:] - 1e-4).all()
    expressed = int((counts.sum(axis=0) > 0).sum())
    assert len(cellfeed.highly_variable_genes(dataset, 10_000)) == expressed < G
    with pytest.raises(PlanError, match="n_top_genes=0 must be an integer of at least 1"):
        cellfeed.highly_variable_genes(dataset, 0)


def test_negative_values_are_refused(counts, tmp_path):
    """Scaled values have no dispersion: the error names the layer, whether rows sum to more or to less than zero."""
    for name, scaled in (("less", counts * -1), ("some", counts - counts.multiply(counts == 1) * 2)):
        uri = write_experiment(tmp_path / f"{name}.soma", sp.csr_matrix(scaled), extent=64, column_extent=512)
        with pytest.raises(SelectionError, match="X_name='raw' holds negative values, such as -"):
            cellfeed.highly_variable_genes(ExperimentDataset(uri, seed=0), 20)
