"""Highly variable genes are those that scanpy finds in memory."""

from importlib.metadata import version

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy
import scipy.sparse as sp
import torch

import cellfeed
from cellfeed import ExperimentDataset, MissingDependencyError, PlanError, SelectionError
from cellfeed.datasets import pbmc700, pbmc700_anndata
from cellfeed.loader import count_tally, highly_variable
from cellfeed.loader.count_tally import CountTally
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


SCANPY_SUMS_EXACTLY = tuple(map(int, version("scanpy").split(".")[:2])) < (1, 12)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("flavor", ["seurat_v3", "seurat_v3_paper"])
@pytest.mark.parametrize("batch_key", [None, "phase"])
@pytest.mark.parametrize("n_top_genes", [20, 765])
def test_statistics_of_seurat_v3_are_those_of_scanpy(n_top_genes, batch_key, flavor):
    """Every column of all genes, and each rank. In scanpy 1.12, the last digits of the variances of a batch depend on
    the order of the cells, and with them the LOESS curve and the ranks of genes of equal variance.
    """
    cells = pbmc700_anndata()
    parameters = {"n_top_genes": n_top_genes, "batch_key": batch_key, "flavor": flavor}
    wanted = scanpy.pp.highly_variable_genes(cells, **parameters, inplace=False)
    found = cellfeed.highly_variable_genes(ExperimentDataset(pbmc700(), seed=0), **parameters, as_frame=True)
    assert list(found.index) == list(cells.var_names)
    assert set(wanted) - set(found) == {"gene_name"} - set(found)
    varies = batch_key is not None and not SCANPY_SUMS_EXACTLY
    for column in ("means", "variances", "variances_norm"):
        np.testing.assert_allclose(found[column], wanted[column], rtol=0.02 if varies else 1e-9)
    for column in set(found) - {"means", "variances", "variances_norm"} if not varies else ():
        np.testing.assert_array_equal(found[column], wanted[column])
    assert (found["highly_variable"] != wanted["highly_variable"]).mean() <= (0.02 if varies else 0)
    names = cellfeed.highly_variable_genes(ExperimentDataset(pbmc700(), seed=0), **parameters)
    assert set(names) == set(found.index[found["highly_variable"]])
    assert flavor == "seurat_v3_paper" or found.loc[names, "highly_variable_rank"].dropna().is_monotonic_increasing


def read_counting(monkeypatch, dataset):
    """Return the statistics, and how often the cells were read."""
    readings = []
    read = highly_variable.read_counts
    with monkeypatch.context() as patch:
        patch.setattr(
            highly_variable, "read_counts", lambda *given, **options: readings.append(1) or read(*given, **options)
        )
        return cellfeed.highly_variable_genes(dataset, 20, flavor="seurat_v3", as_frame=True), len(readings)


def test_cells_are_read_twice_only_if_memory_is_too_small(counts, tmp_path, monkeypatch):
    """The statistics are the same to the bit if few counts are held; a gene with outliers needs more than are held."""
    outliers = counts.tolil()
    outliers[::40, int(np.abs(counts.mean(axis=0) - 1).argmin())] = 100  # far more than other genes of this mean have
    for name, X, expected in (("usual", counts, 1), ("outliers", sp.csr_matrix(outliers), 2)):
        dataset = ExperimentDataset(write_experiment(tmp_path / f"{name}.soma", X, extent=64), seed=0)
        whole, n_readings = read_counting(monkeypatch, dataset)
        assert n_readings == 1
        monkeypatch.setattr(count_tally, "MAX_HELD", 0)
        bounded, n_readings = read_counting(monkeypatch, dataset)
        monkeypatch.undo()
        assert n_readings == expected
        pd.testing.assert_frame_equal(bounded, whole, check_exact=True)


def test_a_tally_holds_few_counts_and_gives_exact_sums(monkeypatch):
    """Of batches that alternate: four counts per batch and gene at most, and all above the floors."""
    monkeypatch.setattr(count_tally, "MAX_HELD", 0)
    rng = np.random.default_rng(0)
    X = rng.negative_binomial(1, 0.02, (1000, 7)).astype(np.float32)
    codes = rng.integers(0, 2, 1000)
    for b in (0, 1):
        X[rng.choice(np.flatnonzero(codes == b), 7, replace=False), np.arange(7)] = 1e5
    tally = CountTally(2, 7)
    for k in range(0, 1000, 50):
        tally.add(codes[k : k + 50], torch.from_numpy(X[k : k + 50]).to_sparse_csr())
        assert tally._n_held == sum(len(values) for _, values in tally._held) <= 4 * 2 * 7
    own = [X[codes == b].astype(float) for b in (0, 1)]
    np.testing.assert_allclose(tally.mean, [x.mean(axis=0) for x in own])
    np.testing.assert_allclose(tally.variance, [x.var(axis=0, ddof=1) for x in own])
    np.testing.assert_allclose(tally.whole().variance[0], X.astype(float).var(axis=0, ddof=1))
    clip = np.full((2, 7), 9e4) + np.arange(7)  # one count of each gene lies above
    assert tally.covers(clip)
    assert not tally.covers(clip / 100)
    for found, power in zip(tally.clipped(clip), (1, 2), strict=True):
        np.testing.assert_allclose(
            found, [(np.minimum(x, c) ** power).sum(axis=0) for x, c in zip(own, clip, strict=True)]
        )


def test_arguments_are_checked_before_cells_are_read(counts, tmp_path, monkeypatch):
    obs = pd.DataFrame({"batch": ["one"] + ["many"] * (N - 1), "half": ["a", "b"] * (N // 2)})
    dataset = ExperimentDataset(write_experiment(tmp_path / "cells.soma", counts, obs, extent=64), seed=0)
    loading = highly_variable.read_counts
    monkeypatch.setattr(highly_variable, "read_counts", None)
    for options, message in (
        ({"flavor": "seurat_3"}, "flavor='seurat_3' is unknown; did you mean 'seurat_v3'"),
        ({"flavor": "seurat_v3", "span": 30}, "span=30 must be a number above 0 and at most 1, such as 0.3"),
        ({"batch_key": "half"}, 'batch_key=\'half\' has no effect with flavor="seurat"; give flavor="seurat_v3"'),
        ({"flavor": "seurat_v3", "batch_key": "batch"}, "batch 'one' has 1 cell, which has no variance"),
    ):
        with pytest.raises(PlanError, match=message):
            cellfeed.highly_variable_genes(dataset, **options)
    with pytest.raises(SelectionError, match="obs has no column 'halve'; did you mean 'half'"):
        cellfeed.highly_variable_genes(dataset, flavor="seurat_v3", batch_key=["batch", "halve"])
    with monkeypatch.context() as patch, pytest.raises(MissingDependencyError, match=r'pip install "cellfeed\[scvi\]"'):
        patch.setattr("importlib.util.find_spec", lambda name: None)
        cellfeed.highly_variable_genes(dataset, flavor="seurat_v3")
    monkeypatch.setattr(highly_variable, "read_counts", loading)
    with pytest.raises(PlanError, match="span=0.001: no LOESS curve fits the .* genes that vary in X .*span=0.002"):
        cellfeed.highly_variable_genes(dataset, flavor="seurat_v3", span=0.001)
    halves = write_experiment(tmp_path / "halves.soma", counts * 0.5, extent=64)
    with pytest.raises(SelectionError, match="X_name='raw' holds values that are not integers, such as 0.5"):
        cellfeed.highly_variable_genes(ExperimentDataset(halves, seed=0), flavor="seurat_v3")
