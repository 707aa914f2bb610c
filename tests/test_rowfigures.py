"""Figures of rows in obs: sums of squares follow from the variance, and find values that compensate."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellfeed import ExperimentDataset, ReadError
from cellfeed.select.row_figures import columns_of, figures_of
from tests.support.stores import addressed, write_experiment

ROWS = st.lists(st.lists(st.integers(1, 40_000), min_size=1, max_size=60), min_size=3, max_size=20)


def census_columns(rows, ddof=1):
    """The columns of a Census for rows of values."""
    rows = [np.array(row, np.float64) for row in rows]
    return pd.DataFrame(
        {
            "nnz": [len(row) for row in rows],
            "raw_sum": [row.sum() for row in rows],
            "raw_variance_nnz": [row.var(ddof=ddof) if len(row) > 1 else 0.0 for row in rows],
        }
    )


@given(ROWS)
def test_sums_of_squares_follow_from_the_variance(rows):
    nnz, _, squares = figures_of(census_columns(rows))
    exact = [sum(value**2 for value in row) for row in rows]
    below = [n > 1 and s < 1e8 for n, s in zip(nnz, exact, strict=True)]
    if any(below):
        assert np.allclose(squares, exact, rtol=1e-12, atol=0)
    else:
        assert squares is None  # too large to say whether they are integers


def counts(n_obs=40, n_vars=30):
    X = addressed(n_obs, n_vars)
    X.data = np.random.default_rng(0).integers(1, 30, X.nnz).astype(np.float32)
    return X


def rows_of(X):
    return [X.data[low:high] for low, high in zip(X.indptr[:-1], X.indptr[1:], strict=True)]


def test_values_that_change_without_their_sum_are_an_error(tmp_path):
    """Their number and sum are those that obs has; a tile has the sums of many rows."""
    X = counts()
    obs = census_columns(rows_of(X))
    at = X.indptr[17]
    X.data[at : at + 3] = [9, 9, 9]
    obs.loc[17, "raw_sum"] = X.data[X.indptr[17] : X.indptr[18]].sum()
    before = X.data[X.indptr[17] : X.indptr[18]].copy()
    before[:3] = [5, 9, 13]
    obs.loc[17, "raw_variance_nnz"] = before.astype(np.float64).var(ddof=1)
    uri = write_experiment(tmp_path / "s", X, obs)
    with pytest.raises(ReadError, match="as the sum of its squared values for soma_joinid 17, but obs has"):
        list(ExperimentDataset(uri))
    assert sum(len(obs) for _, obs in ExperimentDataset(uri, verify=False)) == 40


@pytest.mark.parametrize("parameters", [{}, {"X_dtype": "stored"}, {"X_dtype": "float16"}], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint8])
def test_sound_rows_pass_and_parts_keep_their_figures(tmp_path, parameters, dtype):
    X = counts()
    uri = write_experiment(tmp_path / "s", X, census_columns(rows_of(X)), dtype=dtype)
    dataset = ExperimentDataset(uri, seed=0, **parameters)
    assert dataset._engine.selection.raw_squares.dtype == np.uint32
    for part in dataset.random_split([0.5, 0.5]):
        assert sum(len(obs) for _, obs in part) == 20


def test_another_column_of_that_name_is_not_compared(tmp_path):
    """With another ``ddof``, of another layer, or of values that are no counts."""
    X = counts()
    for name, obs in {
        "ddof": census_columns(rows_of(X), ddof=0),
        "random": census_columns(rows_of(X)).assign(raw_variance_nnz=0.3),
    }.items():
        uri = write_experiment(tmp_path / name, X, obs)
        dataset = ExperimentDataset(uri)
        assert dataset._engine.selection.raw_squares is None
        assert sum(len(obs) for _, obs in dataset) == 40


def test_the_variance_is_read_of_local_stores_only():
    """It is 8 bytes per cell that no filter packs."""
    known = ["nnz", "raw_sum", "raw_variance_nnz", "other"]
    assert columns_of("raw", known, is_remote=False) == ["nnz", "raw_sum", "raw_variance_nnz"]
    assert columns_of("raw", known, is_remote=True) == ["nnz", "raw_sum"]
    assert columns_of("normalized", known, is_remote=False) == ["nnz"]
