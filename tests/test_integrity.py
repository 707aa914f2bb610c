"""Rows of X are compared with obs on every reading path; an error names the cell that differs."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import tiledbsoma as soma

from cellfeed import ExperimentDataset, ReadError
from cellfeed.rows.row_builder import GeneTable, RowBuilder
from tests.support.fakes import row_allocator
from tests.support.stores import addressed, collect, write_experiment

N_OBS, N_VARS = 60, 20


def census_columns(X):
    """The columns of obs in a Census with figures of each row."""
    return pd.DataFrame({"nnz": np.diff(X.indptr), "raw_sum": np.asarray(X.sum(axis=1), np.float64).ravel()})


@pytest.fixture(params=["files", "queries", "public"])
def path(request, monkeypatch):
    """The ways to read X."""
    monkeypatch.setenv("CELLFEED_DIRECT", "1" if request.param == "files" else "0")
    monkeypatch.setenv("CELLFEED_PUBLIC_API", "1" if request.param == "public" else "0")
    return request.param


def passed(uri, **parameters):
    return collect(ExperimentDataset(uri, obs_column_names=["soma_joinid"], seed=0, **parameters), N_VARS)


@pytest.mark.parametrize("X_dtype", ["float32", "bfloat16", "stored"])
def test_rows_that_agree_with_obs_pass(tmp_path, path, X_dtype):
    X = addressed(N_OBS, N_VARS)
    X.data %= 250
    uri = write_experiment(tmp_path / "s", X, census_columns(X))
    dataset = ExperimentDataset(uri, obs_column_names=["soma_joinid"], X_dtype=X_dtype, seed=0)
    rows = sum(len(obs) for _, obs in dataset)
    assert rows == N_OBS


@pytest.mark.parametrize(
    ("column", "by", "message"),
    [
        ("nnz", 1, r"holds \d+ values for soma_joinid 17, but obs has nnz="),
        ("nnz", -1, r"holds \d+ values for soma_joinid 17, but obs has nnz="),
        ("raw_sum", 1, r"holds \d+ as the sum of its values for soma_joinid 17, but obs has raw_sum="),
    ],
)
def test_a_row_that_differs_is_named(tmp_path, path, column, by, message):
    X = addressed(N_OBS, N_VARS)
    obs = census_columns(X)
    obs.loc[17, column] += by
    uri = write_experiment(tmp_path / "s", X, obs)
    with pytest.raises(ReadError, match=message):
        passed(uri)
    with pytest.raises(ReadError, match=message):
        passed(uri, shuffle=False, X_dtype="float16")
    got, joinids, _ = passed(uri, verify=False)
    assert np.array_equal(got, X.toarray()[joinids[:, 0]])


def test_of_some_genes_there_are_no_more_values_than_of_all(tmp_path, path):
    X = addressed(N_OBS, N_VARS, density=0.9)
    obs = census_columns(X)
    genes = soma.AxisQuery(coords=(list(range(0, N_VARS, 2)),))
    uri = write_experiment(tmp_path / "right", X, obs)
    assert sum(len(batch.obs) for batch in ExperimentDataset(uri, var_query=genes, seed=0)) == N_OBS
    obs.loc[30, "nnz"] = 3
    uri = write_experiment(tmp_path / "wrong", X, obs)
    with pytest.raises(ReadError, match=r"values of the selected genes for soma_joinid 30, but obs has nnz=3"):
        list(ExperimentDataset(uri, var_query=genes, seed=0))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_are_finite(tmp_path, path, value):
    X = addressed(N_OBS, N_VARS, density=1.0) / 4
    X.data[X.indptr[41] + 3] = value
    uri = write_experiment(tmp_path / "s", sp.csr_matrix(X))
    with pytest.raises(ReadError, match=r"not finite \(NaN or infinite\) for soma_joinid 41"):
        passed(uri)
    got, joinids, _ = passed(uri, verify=False)
    assert np.array_equal(got, X.toarray()[joinids[:, 0]], equal_nan=True)


def test_other_layers_have_other_sums(tmp_path, path):
    """``raw_sum`` is of the layer ``raw``; ``nnz`` is of all."""
    X = addressed(N_OBS, N_VARS)
    obs = census_columns(X)
    obs["raw_sum"] += 1
    uri = write_experiment(tmp_path / "s", X, obs, layers=("raw", "normalized"))
    assert len(passed(uri, X_name="normalized")[0]) == N_OBS
    with pytest.raises(ReadError, match="raw_sum"):
        passed(uri)


def test_columns_outside_the_array_are_no_genes():
    """A damaged tile may hold any column; as uint16 it would be another gene."""
    for columns in ([0, 70_000], [0, -1], [0, 5]):
        for wanted in (np.arange(5), np.array([0, 3])):
            space, _ = row_allocator([0])
            builder = RowBuilder(np.array([7]), GeneTable.from_joinids(wanted, 5), np.float32)
            with pytest.raises(ReadError, match="outside its 5 columns"):
                builder.add(np.array([7, 7]), np.array(columns), np.ones(2, np.float32))
                builder.finish(space)
