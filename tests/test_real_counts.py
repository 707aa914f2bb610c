"""Real cells: counts are exact, and a model trained through the loader is as good as one trained in memory."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from sklearn.linear_model import LogisticRegression as InMemory

from cellfeed import ExperimentDataset, datasets
from cellfeed.command import demo
from tests.support.stores import write_experiment

LABEL = "bulk_labels"


@pytest.fixture(scope="module")
def blood(tmp_path_factory):
    """The 700 blood cells of the demo: the URI of a store, the matrix and obs."""
    cells = datasets.pbmc700_anndata()
    path = tmp_path_factory.mktemp("blood") / "blood.soma"
    obs = cells.obs[[LABEL]].astype(str)
    return write_experiment(path, cells.X, obs, extent=64, column_extent=256, capacity=10_000), cells.X, obs


def test_logistic_regression_is_as_good_as_in_memory(blood):
    """Within 4 points, which are 8 of 210 cells, of scikit-learn on the same split and the same scaling."""
    uri, counts, obs = blood
    dataset = ExperimentDataset(uri, obs_column_names=[LABEL], batch_size=64, seed=0)
    train, test = dataset.random_split([0.7, 0.3], seed=1, stratify=LABEL)

    def scaled(X):
        X = torch.as_tensor(X)
        return torch.log1p(X / X.sum(dim=1, keepdim=True) * 1e4)

    torch.manual_seed(0)
    model = torch.nn.Linear(dataset.shape[1], 10)
    torch.nn.init.zeros_(model.weight)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-2)
    for _ in range(30):
        for X, y in train:
            loss = torch.nn.functional.cross_entropy(model(scaled(X)), y[:, 0])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        right = [(model(scaled(X)).argmax(dim=1) == y[:, 0]).numpy() for X, y in test]
    through_loader = np.concatenate(right).mean()

    codes = dataset.obs_encoders[LABEL].transform(obs)
    everything = sp.csr_matrix(scaled(counts.toarray()).numpy())
    in_memory = InMemory(max_iter=300).fit(everything[train.obs_joinids], codes[train.obs_joinids])
    reference = in_memory.score(everything[test.obs_joinids], codes[test.obs_joinids])
    print(f"through the loader {through_loader:.3f}, in memory {reference:.3f}")
    assert abs(through_loader - reference) <= 0.04


def test_counts_are_those_of_the_file(blood):
    uri, counts, _ = blood
    dataset = ExperimentDataset(uri, obs_column_names=["soma_joinid"], batch_size=500, seed=0, return_sparse_X=True)
    for X, obs in dataset:
        expected = counts[obs[:, 0].numpy()]
        expected.sort_indices()
        assert np.array_equal(X.values().numpy(), expected.data)
        assert np.array_equal(X.col_indices().numpy(), expected.indices)


def test_demo_beats_the_baseline():
    result = demo.run(progress=False)
    assert (result.n_train, result.n_test) == (560, 140)
    assert result.accuracy > result.baseline + 0.3
    assert "held-out accuracy" in str(result)
