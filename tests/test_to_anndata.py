"""``dataset.to_anndata``: cells in memory, with the results of a model."""

import numpy as np
import pytest
import torch

import cellfeed
from cellfeed import ExperimentDataset, SelectionError
from tests.support.stores import addressed, labelled_obs, write_experiment

N_OBS, N_VARS = 60, 20


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    uri = write_experiment(
        tmp_path_factory.mktemp("cells") / "cells.soma",
        addressed(N_OBS, N_VARS),
        labelled_obs(N_OBS),
        layers=("raw", "other"),
        extent=8,
    )
    cellfeed.write_obsm(uri, "scvi", np.arange(N_OBS), np.arange(N_OBS * 2, dtype=np.float32).reshape(-1, 2))
    return uri


@pytest.fixture(scope="module", params=["SOMA", "local copy"])
def source(request, uri, tmp_path_factory):
    """The cells of the store, in the order of the store or in that of a copy."""
    if request.param == "SOMA":
        return uri
    whole = ExperimentDataset(uri, seed=0, layers=["other"], obsm=["scvi"])
    return whole.write_copy(tmp_path_factory.mktemp("copy") / "cells.zarr")


def test_all_cells_by_default_in_the_order_of_inference(source):
    """X has the values of the store, whatever the transform; layers and embeddings of the dataset are there, too."""
    dataset = ExperimentDataset(
        source, batch_size=7, seed=0, transform=torch.log1p, X_dtype="float16", layers=["other"], obsm=["scvi"]
    )
    cells = dataset.to_anndata()
    ordered = torch.cat([minibatch.joinids for minibatch in cellfeed.inference_dataloader(dataset)])
    assert cells.obs["soma_joinid"].tolist() == ordered.tolist() == dataset.obs_joinids.tolist()
    assert sorted(ordered) == list(range(N_OBS))
    expected = addressed(N_OBS, N_VARS).toarray()[ordered]
    assert np.array_equal(cells.X.toarray(), expected)
    assert [name for name in cells.layers if name is not None] == ["other"]  # from 0.13 on, anndata lists X as None
    assert np.array_equal(cells.layers["other"].toarray(), expected)
    assert cells.obsm["scvi"].tolist() == np.arange(N_OBS * 2).reshape(-1, 2)[ordered].tolist()
    assert cells.obs["label"].tolist() == labelled_obs(N_OBS)["label"].iloc[ordered].tolist()
    assert cells.var["soma_joinid"].tolist() == list(range(N_VARS))


def test_rows_are_in_the_order_of_the_joinids(source):
    dataset = ExperimentDataset(source, seed=0, obs_query="soma_joinid < 50")
    joinids = torch.tensor([31, 2, 49, 7])
    cells = dataset.to_anndata(joinids, obs_columns=["number"], obsm={"X_mine": joinids[:, None].float()})
    assert cells.obs["soma_joinid"].tolist() == joinids.tolist()
    assert np.array_equal(cells.X.toarray(), addressed(N_OBS, N_VARS).toarray()[joinids])
    assert cells.obsm["X_mine"][:, 0].tolist() == joinids.tolist()
    assert set(cells.obs) == {"number", "soma_joinid"}


def test_without_X_no_value_is_read(source):
    dataset = ExperimentDataset(source, seed=0, layers=["other"])
    cells = dataset.to_anndata(X=False)
    assert (cells.X, list(cells.layers), cells.shape) == (None, [], (N_OBS, N_VARS))
    assert dataset.stats().n_minibatches == 0


def test_cells_of_a_part_and_chosen_genes(source):
    """Genes are in the order in which they were chosen. A missing one has zeros, and in var only its name."""
    dataset = ExperimentDataset(source, seed=0)
    names = dataset.gene_names()
    with pytest.warns(UserWarning, match="1 of 3 genes are not in the store"):
        chosen = dataset.select_genes([names[7], "absent", names[2]], missing="zeros")
    _, part = chosen.random_split([0.5, 0.5], seed=0)
    cells = part.to_anndata()
    assert cells.obs["soma_joinid"].tolist() == part.obs_joinids.tolist()
    expected = addressed(N_OBS, N_VARS).toarray()[cells.obs["soma_joinid"]][:, [7, 0, 2]]
    expected[:, 1] = 0
    assert np.array_equal(cells.X.toarray(), expected)
    assert cells.var_names[1] == "absent"
    assert cells.var.iloc[1].isna().all()
    assert cells.var["soma_joinid"].tolist()[::2] == [7, 2]


def test_a_resampled_dataset_gives_each_cell_once(uri):
    dataset = ExperimentDataset(uri, batch_size=4, seed=0).resample(balance="label", n_obs=90)
    assert dataset.to_anndata(X=False).obs["soma_joinid"].tolist() == list(range(N_OBS))


@pytest.mark.parametrize(
    ("joinids", "message"),
    [
        ([3, 60], "joinids: 60 is not a cell of this dataset; give values of dataset.obs_joinids"),
        ([3, 4, 3], "joinids: 3 comes twice, but a cell is one row of an AnnData; give numpy.unique"),
        ([0.5], "joinids of type float64 and shape .1,. must be one or more integers"),
        ([], "must be one or more integers in one dimension"),
        (7, "joinids of type int64 and shape .. must be"),
    ],
)
def test_joinids_that_are_no_cells(uri, joinids, message):
    with pytest.raises(SelectionError, match=message):
        ExperimentDataset(uri, seed=0).to_anndata(joinids)


def test_embeddings_and_columns_that_do_not_fit(uri):
    dataset = ExperimentDataset(uri, seed=0)
    with pytest.raises(SelectionError, match=r"obsm: 'X_mine' has the shape \(3, 2\), and must be \(60, n_dims\)"):
        dataset.to_anndata(X=False, obsm={"X_mine": np.zeros((3, 2))})
    with pytest.raises(SelectionError, match="obs has no column 'labels'.*label"):
        dataset.to_anndata(X=False, obs_columns=["labels"])
