"""The page about one's own data: its recipe for several files works for studies that differ."""

import re
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import tiledbsoma
import tiledbsoma.io

import cellfeed

PAGE = Path(__file__).parent.parent / "docs/tutorials/own_data.md"


def write_study(path, genes, obs, seed):
    X = sp.random(len(obs), len(genes), 0.5, "csr", random_state=np.random.default_rng(seed))
    X.data = np.ceil(X.data * 9).astype(np.float32)
    study = anndata.AnnData(X.astype(np.float32), obs, pd.DataFrame({f"only {path}": 1.0}, index=genes))
    study.write_h5ad(path)
    return study


@pytest.mark.filterwarnings("ignore")
def test_studies_with_other_columns_and_genes_make_one_experiment(tmp_path, monkeypatch):
    """Other obs columns, another type of a common one, other var columns, and cells of one name in both."""
    monkeypatch.chdir(tmp_path)
    names = [f"cell {k}" for k in range(30)]
    labels = [f"type {k % 3}" for k in range(30)]
    first = write_study("first.h5ad", ["A", "B", "C"], pd.DataFrame({"bulk_labels": labels, "subpop": 1}, names), 0)
    obs = pd.DataFrame({"bulk_labels": pd.Categorical(labels), "age": 3.5}, names)
    second = write_study("second.h5ad", ["C", "D", "A"], obs, 1)
    (recipe,) = re.findall(r"(def read_study.*?)```", PAGE.read_text(), re.DOTALL)
    recipe = recipe.replace(
        '"both"', repr(str(tmp_path / "both"))
    )  # TileDB keeps the first working folder of a process
    program = {"anndata": anndata, "soma": tiledbsoma, "tiledbsoma": tiledbsoma, "cellfeed": cellfeed}
    exec(recipe, program | {"files": ["first.h5ad", "second.h5ad"]})
    dataset = cellfeed.ExperimentDataset(
        tmp_path / "both", obs_column_names=["bulk_labels"], shuffle=False, batch_size=60
    )
    ((X, codes),) = dataset
    genes = dataset.gene_names().tolist()
    assert sorted(genes) == ["A", "B", "C", "D"]
    expected = [anndata_of.to_df().reindex(columns=genes, fill_value=0) for anndata_of in (first, second)]
    assert np.array_equal(X.numpy(), np.concatenate(expected))
    assert dataset.obs_encoders["bulk_labels"].inverse_transform(codes[:, 0]).tolist() == labels * 2


def test_sums_of_more_genes_are_named_with_what_to_do(tmp_path):
    """A slice of a Census with some genes still has the sums of all of them in its obs."""
    from tests.support.stores import addressed, write_experiment

    X = addressed(20, 6)
    obs = pd.DataFrame({"nnz": np.diff(X.indptr) + 3, "raw_sum": np.asarray(X.sum(axis=1)).ravel() + 9})
    uri = write_experiment(tmp_path / "s", X, obs)
    with pytest.raises(cellfeed.ReadError, match="or more genes, as in a store made of .*: drop nnz"):
        list(cellfeed.ExperimentDataset(uri))
