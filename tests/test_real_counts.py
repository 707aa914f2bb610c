"""Real cells: a model trained through the loader is as good as one trained in memory."""

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from sklearn.linear_model import LogisticRegression as InMemory

from cellfeed import ExperimentDataset, demo
from tests.support.stores import write_experiment


@pytest.fixture(scope="module")
def facs(tmp_path_factory, real_counts):
    """FACS-sorted blood cells of ten populations, the libraries one after another, as a store."""
    cells = anndata.read_h5ad(real_counts("zheng_facs_pbmc.h5ad"))
    cells = cells[np.argsort(cells.obs["library"].astype(str), kind="stable")].copy()
    uri = write_experiment(
        tmp_path_factory.mktemp("facs") / "facs.soma",
        cells.X,
        cells.obs[["cell_type"]].astype(str),
        extent=256,
        column_extent=2048,
        capacity=10_000,
    )
    return uri, cells


def test_logistic_regression_is_as_good_as_in_memory(facs):
    """Within 2 points of scikit-learn on the same split and the same scaling."""
    uri, cells = facs
    dataset = ExperimentDataset(
        uri, obs_column_names=["cell_type", "soma_joinid"], batch_size=128, seed=0, memory_budget="512 MiB"
    )
    train, test = dataset.random_split([0.8, 0.2], seed=1, stratify="cell_type")

    def scaled(X):
        X = torch.as_tensor(X)
        return torch.log1p(X / X.sum(dim=1, keepdim=True) * 1e4)

    torch.manual_seed(0)
    model = torch.nn.Linear(dataset.shape[1], 10)
    torch.nn.init.zeros_(model.weight)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-2)
    for _ in range(15):
        for X, obs in train:
            loss = torch.nn.functional.cross_entropy(model(scaled(X)), obs[:, 0])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        right = [(model(scaled(X)).argmax(dim=1) == obs[:, 0]).numpy() for X, obs in test]
    through_loader = np.concatenate(right).mean()

    codes = dataset.obs_encoders["cell_type"].transform(cells.obs[["cell_type"]].astype(str))
    everything = sp.csr_matrix(scaled(cells.X.toarray()).numpy())
    in_memory = InMemory(max_iter=300).fit(everything[train.obs_joinids], codes[train.obs_joinids])
    reference = in_memory.score(everything[test.obs_joinids], codes[test.obs_joinids])
    print(f"through the loader {through_loader:.3f}, in memory {reference:.3f}")
    assert abs(through_loader - reference) <= 0.02


def test_counts_are_those_of_the_file(facs):
    uri, cells = facs
    dataset = ExperimentDataset(uri, obs_column_names=["soma_joinid"], batch_size=500, seed=0, return_sparse_X=True)
    for X, obs in dataset:
        wanted = cells.X[obs[:, 0].numpy()]
        wanted.sort_indices()
        assert np.array_equal(X.values().numpy(), wanted.data)
        assert np.array_equal(X.col_indices().numpy(), wanted.indices)


def test_demo_beats_the_baseline():
    result = demo.run(progress=False)
    assert (result.n_train, result.n_test) == (560, 140)
    assert result.accuracy > result.baseline + 0.3
    assert "held-out accuracy" in str(result)
