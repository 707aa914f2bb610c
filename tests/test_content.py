"""What a minibatch has beside X and obs: each row is that of its cell, over SOMA and AnnData."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from cellfeed import (
    ExperimentDataPipe,
    ExperimentDataset,
    ExtendedMinibatch,
    Minibatch,
    SelectionError,
    experiment_dataloader,
    inference_dataloader,
)
from tests.support.sources import Cells, writing
from tests.support.stores import write_experiment

N = 100
CELLS = Cells.make(N)
OBS = CELLS.obs.assign(
    age=pd.array([None if i % 10 == 3 else i for i in range(N)], "Int64"),
    score=[np.nan if i == 7 else i / 8 for i in range(N)],
    grade=pd.Categorical([[1.5, 2.5][i % 2] for i in range(N)]),
    wide=np.where(np.arange(N) == 5, 1e300, 1.0),
)


def write_soma(folder: Path) -> Path:
    path = folder / "cells.soma"
    write_experiment(path, CELLS.X, OBS, var=CELLS.var, joinids=CELLS.joinids)
    return path


def write_zarr(folder: Path) -> Path:
    path = folder / "cells.zarr"
    with writing(3):
        Cells(CELLS.X, OBS, CELLS.var, CELLS.joinids).to_anndata().write_zarr(path)
    return path


@pytest.fixture(scope="module", params=[write_soma, write_zarr], ids=["soma", "zarr"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return request.param(tmp_path_factory.mktemp("content"))


@pytest.fixture
def make(source: Path) -> Callable[..., ExperimentDataset]:
    """Make a dataset whose epoch has many windows and minibatches."""
    defaults = {"seed": 5, "batch_size": 7, "soma_chunk_size": 4, "shuffle_chunk_count": 3, "joinids": True}
    return lambda **parameters: ExperimentDataset(source, **{**defaults, **parameters})


def rows_of(minibatch: ExtendedMinibatch) -> np.ndarray:
    """The row in ``CELLS`` of each cell of a minibatch."""
    return (minibatch.joinids.numpy() - 2) // 3


def check(minibatch: ExtendedMinibatch) -> None:
    """Compare each part of a minibatch with that of its cells."""
    rows = rows_of(minibatch)
    assert np.array_equal(minibatch.X.to_dense().numpy(), CELLS.X[rows].toarray())
    if minibatch.obs_values is not None:
        expected = OBS[VALUES].iloc[rows].to_numpy(np.float32, na_value=np.nan)
        assert minibatch.obs_values.dtype == torch.float32
        assert np.array_equal(minibatch.obs_values.numpy(), expected, equal_nan=True)


VALUES = ["score", "flag", "number"]
EVERYTHING: dict[str, Any] = {"obs_values": VALUES}


@pytest.mark.filterwarnings("ignore:obs_values")
def test_minibatches_have_two_fields_unless_more_is_asked_for(make):
    assert type(next(iter(make(joinids=False)))) is Minibatch
    assert type(next(iter(make()))) is ExtendedMinibatch
    minibatch = next(iter(make(**EVERYTHING, joinids=False)))
    assert minibatch._fields[:8] == (
        "X", "obs", "layers", "obsm", "obs_values", "measurements", "joinids", "mask"
    )  # fmt: skip
    assert minibatch.joinids is None


@pytest.mark.filterwarnings("ignore:obs_values")
@pytest.mark.parametrize("parameters", [{}, {"return_sparse_X": True}, {"shuffle": False, "soma_chunk_size": None}])
def test_each_row_is_that_of_its_cell(make, parameters):
    if "shuffle" in parameters:
        parameters = {**parameters, "shuffle_chunk_count": None}
    dataset = make(**EVERYTHING, **parameters)
    for _ in range(2):
        minibatches = list(dataset)
        for minibatch in minibatches:
            check(minibatch)
        assert sorted(itertools.chain(*map(rows_of, minibatches))) == list(range(N))


@pytest.mark.filterwarnings("ignore:obs_values")
def test_rows_stay_with_their_cells_over_ranks_splits_and_resume(make):
    for rank in range(3):
        for minibatch in make(**EVERYTHING, rank=rank, world_size=3, rank_remainder="pad"):
            check(minibatch)
            assert len(minibatch.mask) == len(minibatch.X)
    for part in make(**EVERYTHING).random_split([0.5, 0.5], seed=1):
        for minibatch in part:
            check(minibatch)
    dataset = make(**EVERYTHING)
    whole = [rows_of(minibatch).tolist() for minibatch in dataset]
    dataset = make(**EVERYTHING)
    iterator = iter(dataset)
    for k in range(len(whole)):
        restored = make(**EVERYTHING)
        restored.load_state_dict(dataset.state_dict())
        rest = list(restored)
        assert [rows_of(minibatch).tolist() for minibatch in rest] == whole[k:]
        for minibatch in rest:
            check(minibatch)
        next(iterator)


@pytest.mark.filterwarnings("ignore:obs_values")
def test_inference_yields_the_content_in_order(make):
    minibatches = list(inference_dataloader(make(**EVERYTHING, joinids=False)))
    for minibatch in minibatches:
        check(minibatch)
    assert list(itertools.chain(*map(rows_of, minibatches))) == list(range(N))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:obs_values")
@pytest.mark.parametrize("return_sparse_X", [True, False])
def test_worker_processes_send_the_content(make, return_sparse_X):
    minibatches = list(experiment_dataloader(make(**EVERYTHING, return_sparse_X=return_sparse_X), num_workers=2))
    for minibatch in minibatches:
        check(minibatch)
    assert sorted(itertools.chain(*map(rows_of, minibatches))) == list(range(N))


@pytest.mark.filterwarnings("ignore:obs_values")
def test_a_minibatch_is_pickled_moved_and_made_a_dict(make):
    minibatch = next(iter(make(**EVERYTHING)))
    check(pickle.loads(pickle.dumps(minibatch)))
    check(minibatch.to("cpu"))
    moved = minibatch.to("meta")
    assert type(moved) is ExtendedMinibatch
    assert moved.obs_values.device.type == moved.X.device.type == "meta"
    named = minibatch.as_dict()
    assert list(named) == ["X", "obs", "obs_values", "joinids"]
    assert named["X"] is minibatch.X
    assert list(next(iter(make(joinids=False))).as_dict()) == ["X", "obs"]


@pytest.mark.filterwarnings("ignore:obs_values")
def test_single_cells_of_a_datapipe_have_no_first_dimension(source):
    cell = next(iter(ExperimentDataPipe(source, X_name=None, seed=0, **EVERYTHING)))
    assert cell.obs_values.shape == (len(VALUES),)
    assert cell.X.shape == (CELLS.X.shape[1],)


# obs_values


def test_missing_values_are_nan_and_counted(make):
    with pytest.warns(UserWarning, match="column 'age' has no value for 10 of 100 cells, which are NaN"):
        dataset = make(obs_values=["age"])
    for minibatch in dataset:
        expected = OBS["age"].iloc[rows_of(minibatch)].to_numpy(np.float32, na_value=np.nan)
        assert np.array_equal(minibatch.obs_values[:, 0].numpy(), expected, equal_nan=True)


def test_categories_that_are_numbers_are_numbers(make):
    for minibatch in make(obs_values=["grade"]):
        assert minibatch.obs_values[:, 0].tolist() == [[1.5, 2.5][i % 2] for i in rows_of(minibatch)]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"obs_values": ["agee"]}, "obs_values: obs has no column 'agee'; did you mean 'age'"),
        ({"obs_values": ["label"]}, r"'label' holds text \('type 0', .*\), not numbers; obs_column_names=\['label'\]"),
        ({"obs_values": ["text"]}, "'text' holds text .* and 45 others"),
        ({"obs_values": "age"}, r"obs_values='age' must be a list of names: \['age'\]"),
        ({"obs_values": ["score", "score"]}, "holds 'score' more than once"),
        ({"obs_values": [1]}, "a name=1 must be a name, as text"),
        ({"obs_values": ["wide"]}, r"'wide' holds 1e\+300, which float32 cannot hold"),
        ({"obs_values": ["soma_joinid"]}, "give joinids=True"),
    ],
)
def test_bad_names_are_errors(make, parameters, message):
    with pytest.raises(SelectionError, match=message):
        make(**parameters)


def test_joinids_is_a_switch(make):
    with pytest.raises(ValueError, match="joinids='yes' must be True or False"):
        make(joinids="yes")
