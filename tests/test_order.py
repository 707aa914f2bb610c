"""Arguments whose order matters may not be sets: a set has another order in each process."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from cellfeed import EncodeError, ExperimentDataPipe, ExperimentDataset, LabelEncoder, PlanError, SelectionError
from cellfeed.transforms import SelectGenes
from tests.support.stores import addressed, labelled_obs, write_experiment

GENES = ["G4", "G1", "G3"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_experiment(tmp_path_factory.mktemp("order") / "s", addressed(20, 6), labelled_obs(20))


@pytest.mark.parametrize("kind", [set, frozenset])
def test_sets_are_refused(store, kind):
    dataset = ExperimentDataset(store, seed=0)
    for call, error in {
        lambda: dataset.select_genes(kind(GENES), var_column="feature_name"): SelectionError,
        lambda: SelectGenes(kind(GENES), var_names=[f"G{k}" for k in range(6)]): SelectionError,
        lambda: SelectGenes(GENES, var_names=kind(f"G{k}" for k in range(6))): SelectionError,
        lambda: ExperimentDataset(store, obs_column_names=kind(["label", "donor"])): SelectionError,
        lambda: ExperimentDataset(store, encoders=kind([LabelEncoder("label")])): SelectionError,
        lambda: LabelEncoder("label", classes=kind(["a", "b"])): EncodeError,
        lambda: dataset.random_split(kind([0.3, 0.7])): PlanError,
        lambda: ExperimentDataPipe(store, seed=0).random_split(weights=kind([3, 7])): PlanError,
    }.items():
        with pytest.raises(error, match="is a set, which has another order in each process; give an ordered list"):
            call()


def test_scvi_takes_genes_and_keys_in_order(store):
    pytest.importorskip("scvi")
    from cellfeed.scvi import SCVIDataModule

    for parameters in (
        {"batch_key": None, "genes": set(GENES), "var_column": "feature_name"},
        {"batch_key": {"donor", "label"}},
        {"batch_key": None, "categorical_covariate_keys": {"donor", "label"}},
    ):
        with pytest.raises(SelectionError, match="give an ordered list"):
            SCVIDataModule(store, counts=False, **parameters)


@pytest.mark.parametrize("kind", [list, tuple, np.array, pa.array, pd.Index, pd.Categorical, iter, dict.fromkeys])
def test_what_has_an_order_is_taken(store, kind):
    dataset = ExperimentDataset(store, seed=0).select_genes(kind(GENES), var_column="feature_name")
    assert dataset.gene_names().tolist() == GENES


@pytest.mark.parametrize("kind", [iter, lambda shares: dict(enumerate(shares)).values()])
@pytest.mark.parametrize("make", [ExperimentDataset, ExperimentDataPipe])
def test_generators_and_views_of_dicts_keep_their_order(store, make, kind):
    """ShardAssignment, and ``var_names``, may come from a generator or a view of a dict."""
    parts = make(store, seed=0).random_split(kind([0.3, 0.7]))
    assert [len(part.obs_joinids) for part in parts] == [6, 14]
    assert SelectGenes(kind(GENES), var_names=kind([f"G{k}" for k in range(6)])).source.tolist() == [4, 1, 3]


def test_genes_of_another_column_are_named_with_it(tmp_path):
    var = pd.DataFrame({"var_id": [f"ENSG{k}" for k in range(6)], "feature_name": [f"G{k}" for k in range(6)]})
    uri = write_experiment(tmp_path / "s", addressed(20, 6), var=var)
    dataset = ExperimentDataset(uri, seed=0)
    with pytest.raises(SelectionError, match=r"2 of 2 genes are not.*Var holds them in 'feature_name' \(2 of 2\)"):
        dataset.select_genes(["G4", "G1"])
    with pytest.raises(SelectionError, match=r"give var_column='feature_name'"):
        dataset.select_genes(["ENSG1", "G2", "nothing"])
    with pytest.raises(SelectionError) as raised:
        dataset.select_genes(["nothing"])
    assert "Var holds" not in str(raised.value)
    assert dataset.select_genes(["G4", "G1"], var_column="feature_name").gene_names().tolist() == ["G4", "G1"]


@pytest.mark.parametrize("genes", [[["G1"]], np.array([["G1"]]), [3], np.array([True] * 6), [None], b"G1"], ids=repr)
def test_genes_are_names(store, genes):
    """Places of genes, masks, and lists in lists are refused by name."""
    with pytest.raises(SelectionError, match="must be names, as text"):
        ExperimentDataset(store, seed=0).select_genes(genes)
