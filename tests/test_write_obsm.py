"""``write_obsm`` to AnnData in zarr; ``test_inference`` writes to experiments."""

import anndata
import numpy as np
import pytest
import scipy.sparse as sp

import cellfeed
from cellfeed import ExperimentDataset, SelectionError
from tests.support.sources import writing
from tests.support.stores import addressed, labelled_obs, write_experiment

N_OBS = 30


@pytest.fixture
def copy(tmp_path):
    uri = write_experiment(tmp_path / "cells.soma", addressed(N_OBS, 9), labelled_obs(N_OBS), extent=8)
    return ExperimentDataset(uri, seed=0).write_copy(tmp_path / "cells.zarr")


def embedding(joinids):
    """Values that encode the joinid."""
    return np.asarray(joinids, np.float32)[:, None] * [1, 10]


def test_a_copy_has_the_embedding_of_each_cell(copy):
    """Rows are found by their joinid; the copy stays complete and verified, and anndata reads it."""
    joinids = np.random.default_rng(0).permutation(N_OBS)
    assert cellfeed.write_obsm(copy, "X_mine", joinids, embedding(joinids)) == str(copy)
    dataset = ExperimentDataset(copy, seed=0, batch_size=4, obsm=["X_mine"], joinids=True)
    for minibatch in dataset:
        assert np.array_equal(minibatch.obsm["X_mine"], embedding(minibatch.joinids))
    cells = anndata.read_zarr(copy)
    assert np.array_equal(cells.obsm["X_mine"], embedding(cells.obs["soma_joinid"]))


def test_cells_without_a_row_are_nan(copy):
    cellfeed.write_obsm(copy, "X_mine", [3, 7], embedding([3, 7]))
    with pytest.warns(UserWarning, match="has no values for 28 of 30 cells, which are NaN"):
        dataset = ExperimentDataset(copy, seed=0, obsm=["X_mine"])
    cells = dataset.to_anndata(range(N_OBS), X=False)
    has = np.isin(np.arange(N_OBS), [3, 7])
    assert np.array_equal(cells.obsm["X_mine"][has], embedding([3, 7]))
    assert np.isnan(cells.obsm["X_mine"][~has]).all()


def test_a_name_that_is_there_is_replaced_only_if_asked(copy):
    cellfeed.write_obsm(copy, "X_mine", [3], [[1.0, 2.0]])
    with pytest.raises(SelectionError, match="name='X_mine' is in obsm already; give another name, or overwrite=True"):
        cellfeed.write_obsm(copy, "X_mine", [3], [[5.0]])
    cellfeed.write_obsm(copy, "X_mine", [3], [[5.0]], overwrite=True)
    assert np.nanmax(anndata.read_zarr(copy).obsm["X_mine"]) == 5
    assert sorted(path.name for path in (copy / "obsm").iterdir()) == ["X_mine", "zarr.json"]


def test_each_part_of_a_collection_gets_its_rows(tmp_path):
    uri = write_experiment(tmp_path / "cells.soma", addressed(N_OBS, 9), labelled_obs(N_OBS), extent=8)
    copied = ExperimentDataset(uri, seed=0, batch_size=4, local_copy=tmp_path / "parts")
    for part in copied.random_split([0.5, 0.5], seed=0):
        list(part)
    cellfeed.write_obsm(tmp_path / "parts", "X_mine", np.arange(N_OBS), embedding(np.arange(N_OBS)))
    dataset = ExperimentDataset(tmp_path / "parts", seed=0, obsm=["X_mine"], joinids=True, batch_size=4)
    read = [minibatch.joinids for minibatch in dataset if (minibatch.obsm["X_mine"][:, 0] == minibatch.joinids).all()]
    assert sum(map(len, read)) == N_OBS


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_stores_that_others_have_written(tmp_path, zarr_format):
    """Joinids are the numbers of rows."""
    with writing(zarr_format):
        anndata.AnnData(sp.csr_matrix(addressed(5, 3))).write_zarr(tmp_path / "theirs.zarr")
    cellfeed.write_obsm(tmp_path / "theirs.zarr", "X_mine", [4, 0], [[4.0], [0.0]])
    assert anndata.read_zarr(tmp_path / "theirs.zarr").obsm["X_mine"][[0, 4], 0].tolist() == [0, 4]


def test_what_cannot_be_written(copy, tmp_path):
    with pytest.raises(SelectionError, match="joinids: obs has no soma_joinid 30 .1 of 2 are not in it"):
        cellfeed.write_obsm(copy, "X_mine", [3, 30], [[1.0], [2.0]])
    with pytest.raises(SelectionError, match="name='a/b' must be the name of a folder"):
        cellfeed.write_obsm(copy, "a/b", [3], [[1.0]])
    with pytest.raises(SelectionError, match="measurement_name= and context= are of an experiment"):
        cellfeed.write_obsm(copy, "X_mine", [3], [[1.0]], measurement_name="protein")
    anndata.AnnData(sp.csr_matrix(addressed(5, 3))).write_h5ad(tmp_path / "mine.h5ad")
    with pytest.raises(SelectionError, match="is not an AnnData in zarr on a local disk; make one by cellfeed copy"):
        cellfeed.write_obsm(tmp_path / "mine.h5ad", "X_mine", [3], [[1.0]])
    assert "X_mine" not in anndata.read_zarr(copy).obsm


def test_no_rows_make_an_embedding_without_values(copy):
    cellfeed.write_obsm(copy, "X_mine", [], np.zeros((0, 2)))
    assert np.isnan(anndata.read_zarr(copy).obsm["X_mine"]).all()


def test_joinids_mean_the_cells_that_a_dataset_reads(tmp_path):
    """A column that cannot be the joinids of a dataset is refused here, too."""
    cells = anndata.AnnData(sp.csr_matrix(addressed(5, 3)))
    cells.obs["soma_joinid"] = [1, 1, 2, 3, 4]
    with writing(3):
        cells.write_zarr(tmp_path / "theirs.zarr")
    with pytest.raises(SelectionError, match="soma_joinid that is not a distinct integer per row; rename it"):
        cellfeed.write_obsm(tmp_path / "theirs.zarr", "X_mine", [1], [[1.0]])
