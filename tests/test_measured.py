"""Genes that were not measured are distinguished from zeros, for every choice of genes and cells."""

import pickle
import shutil

import numpy as np
import pandas as pd
import pytest
import tiledbsoma as soma
import torch
from hypothesis import given
from hypothesis import strategies as st

import cellfeed
from cellfeed import ExperimentDataset, PlanError, SelectionError
from cellfeed.select.measured import Measured
from cellfeed.transforms import Compose, Log1p, NormalizeTotal, SelectGenes
from tests.support.census import write_census
from tests.support.sources import KINDS, Cells
from tests.support.stores import addressed, labelled_obs, write_experiment

N, G = 60, 14
GENES = np.arange(G) * 2 + 1  # joinids
DATASETS = [f"data set {k}" for k in (4, 2, 0, 3, 1)]
OBS = labelled_obs(N).assign(dataset_id=pd.Categorical([DATASETS[k * 7 % 5] for k in range(N)]))
VAR = pd.DataFrame({"feature_id": [f"ENSG{j}" for j in range(G)], "feature_name": [f"G{j}" for j in range(G)]})
PRESENCE = pd.DataFrame(np.random.default_rng(1).random((5, G)) < 0.6, index=DATASETS, columns=GENES)


def measured_in(row, genes=range(G)):
    """The expected mask of the cell in a row of obs."""
    return PRESENCE.loc[OBS["dataset_id"].iloc[row]].to_numpy()[list(genes)].tolist()


def write(root, **options):
    """A Census in which the cells of a data set have values of its genes only."""
    X = addressed(N, G, 0.8)
    X = X.multiply(PRESENCE.loc[OBS["dataset_id"]].to_numpy()).tocsr()
    return write_census(root, X, OBS, PRESENCE, var=VAR, var_joinids=GENES, **options)


@pytest.fixture(scope="module")
def census(tmp_path_factory):
    return write(tmp_path_factory.mktemp("census"))


def masks(dataset):
    """The mask of each cell, by its joinid."""
    found = {}
    for minibatch in dataset:
        assert minibatch.measured.dtype == torch.bool
        assert minibatch.measured.shape == minibatch.X.shape
        found |= dict(zip(minibatch.joinids.tolist(), minibatch.measured.tolist(), strict=True))
    return found


def make(source, **parameters):
    return ExperimentDataset(source, **{"measured": True, "joinids": True, "seed": 0, "batch_size": 7, **parameters})


# The lookup


@given(st.integers(1, 5), st.integers(0, 6), st.lists(st.integers(0, 99), min_size=1, max_size=20), st.data())
def test_the_mask_of_a_cell_is_the_row_of_its_group(n_groups, n_vars, seeds, data):
    rng = np.random.default_rng(seeds)
    table = rng.random((n_groups, n_vars)) < 0.5
    groups = rng.integers(0, n_groups, len(seeds)).astype(np.int8)
    measured = Measured(table, groups)
    positions = np.array(data.draw(st.lists(st.integers(0, len(seeds) - 1))), np.int64)
    genes = np.flatnonzero(rng.random(n_vars) < 0.5)
    assert np.array_equal(measured.mask(positions), table[groups[positions]])
    out = np.ones((len(positions), n_vars), bool)
    assert measured.mask(positions, out) is out
    assert np.array_equal(out, table[groups[positions]])
    kept = measured.take(positions).take_vars(genes)
    assert np.array_equal(kept.mask(np.arange(len(positions))), table[groups[positions]][:, genes])


# Minibatches


@pytest.mark.parametrize("sparse", [False, True])
def test_each_cell_has_the_genes_of_its_data_set(census, sparse):
    dataset = make(census, return_sparse_X=sparse)
    for _ in range(2):
        found = masks(dataset)
        assert found == {row: measured_in(row) for row in range(N)}
    for minibatch in dataset:
        X = minibatch.X.to_dense() if sparse else minibatch.X
        assert bool(minibatch.measured[X > 0].all())


def test_masks_stay_as_they_are_while_later_ones_are_made(census):
    kept = list(make(census))
    for minibatch in kept:
        assert minibatch.measured.tolist() == [measured_in(row) for row in minibatch.joinids.tolist()]


def test_parts_copies_and_other_processes_keep_the_genes_of_their_cells(census, tmp_path):
    dataset = make(census, local_copy=tmp_path / "copy", X_dtype="stored")
    assert masks(dataset) == masks(dataset)  # the second epoch reads the copy
    assert dataset.stats().n_obs_from_copy == N
    train, test = (masks(part) for part in dataset.random_split([0.7, 0.3], seed=1))
    assert train | test == {row: measured_in(row) for row in range(N)}
    assert masks(pickle.loads(pickle.dumps(make(census)))) == masks(make(census))


def test_queries_and_axis_queries_have_the_genes_and_cells_that_they_select(census):
    query = soma.AxisQuery(value_filter="dataset_id in ['data set 2', 'data set 3']")
    var_query = soma.AxisQuery(coords=([int(j) for j in GENES[3:9]],))
    rows = np.flatnonzero(OBS["dataset_id"].isin(["data set 2", "data set 3"])).tolist()
    expected = {row: measured_in(row, range(3, 9)) for row in rows}
    dataset = make(census, obs_query=query, var_query=var_query)
    assert masks(dataset) == expected
    assert dataset._engine.selection.measured.table.shape == (2, 6)
    with soma.open(census) as experiment:
        axis_query = experiment.axis_query("RNA", obs_query=query, var_query=var_query)
        dataset = ExperimentDataset.from_query(axis_query, measured=True, joinids=True, seed=0)
    assert masks(dataset) == expected


def test_the_mask_follows_the_columns_of_X(census):
    """Genes in another order, genes that the store lacks, and a transform that selects genes."""
    with pytest.warns(UserWarning, match="1 of 4 genes are not in the store"):
        chosen = make(census).select_genes(["ENSG7", "ENSG0", "other", "ENSG5"], missing="zeros")
    expected = {row: [*measured_in(row, [7, 0]), False, *measured_in(row, [5])] for row in range(N)}
    assert masks(chosen) == expected
    assert masks(chosen.select_genes(["ENSG5", "ENSG7"])) == {row: measured_in(row, [5, 7]) for row in range(N)}
    names = make(census).gene_names()
    transform = Compose(NormalizeTotal(), SelectGenes(["ENSG9", "ENSG2"], names), Log1p())
    assert masks(make(census, transform=transform)) == {row: measured_in(row, [9, 2]) for row in range(N)}


def test_an_empty_dataset_has_no_masks(census):
    query = {"obs_query": "number < 0", "allow_empty": True}
    assert masks(make(census, **query)) == {}
    assert masks(make(census, measured=PRESENCE, **query)) == {}


class Sums:
    """A transform to one column."""

    n_vars = 1

    def __call__(self, X):
        return X.sum(dim=1, keepdim=True)


def test_a_transform_with_unknown_columns_is_refused(census):
    with pytest.raises(PlanError, match="measured= with a transform that makes 1 columns of the 14 genes"):
        next(iter(make(census, transform=Sums())))


def test_the_mask_is_part_of_the_minibatch_and_of_the_plan(census):
    minibatch = next(iter(make(census)))
    assert list(minibatch.as_dict()) == ["X", "obs", "joinids", "measured"]
    assert minibatch.to("cpu").measured.tolist() == minibatch.measured.tolist()
    assert next(iter(cellfeed.inference_dataloader(make(census)))).measured.shape == (7, G)
    plain, masked = (
        make(census, measured=measured)._engine.media.source.planner.budget() for measured in (False, True)
    )
    assert masked.minibatch_bytes - plain.minibatch_bytes >= 7 * G * 3
    assert isinstance(next(iter(make(census, measured=False, joinids=False))), cellfeed.Minibatch)


# Tables of users


def test_a_table_by_names_or_joinids_of_genes_has_the_masks_of_the_presence_matrix(census):
    expected = masks(make(census))
    shuffled = PRESENCE.iloc[::-1, ::-1]
    extra = pd.concat([shuffled, pd.DataFrame(True, index=["another"], columns=shuffled.columns)])
    tables = [
        PRESENCE,
        extra,
        shuffled.astype(np.uint8),
        extra.set_axis([f"ENSG{j}" for j in range(G)][::-1], axis=1),
        extra.set_axis([f"G{j}" for j in range(G)][::-1], axis=1),
        PRESENCE.astype(pd.SparseDtype(np.uint8, 0)),
    ]
    assert all(masks(make(census, measured=table)) == expected for table in tables)


@pytest.mark.parametrize("kind", KINDS)
def test_any_column_of_obs_groups_cells_of_any_source(kind, tmp_path):
    cells = Cells.make(30, 8)
    table = pd.DataFrame(
        np.arange(5 * 8).reshape(5, 8) % 3 > 0,
        index=pd.Index([f"donor {k}" for k in range(5)], name="donor"),
        columns=[f"G{j}" for j in range(8)],
    )
    source = KINDS[kind](cells, tmp_path)
    dataset = ExperimentDataset(**source, measured=table, joinids=True, seed=0, batch_size=8)
    expected = table.loc[cells.obs["donor"]].to_numpy().tolist()
    assert masks(dataset) == dict(zip(cells.joinids.tolist(), expected, strict=True))


# Errors, before X is read


def test_stores_without_a_presence_matrix_are_named(census, tmp_path):
    plain = write_experiment(tmp_path / "plain.soma", addressed(N, G), OBS)
    with pytest.raises(
        SelectionError, match="measurement 'RNA' has no 'feature_dataset_presence_matrix'.*give one: meas"
    ):
        make(plain)
    with pytest.raises(SelectionError, match="an AnnData has no table of the genes that were measured; give one"):
        make(make(census).write_copy(tmp_path / "copy.zarr"))


def test_an_experiment_apart_from_its_census_is_named(tmp_path):
    uri = write(tmp_path)
    shutil.rmtree(tmp_path / "census_info")
    with pytest.raises(
        SelectionError, match="measured=True: the table of data sets .*census_info/datasets' cannot be r"
    ):
        make(uri)


def test_a_data_set_without_a_row_is_named(tmp_path):
    X = addressed(N, G)
    uri = write_census(tmp_path, X, OBS, PRESENCE.iloc[:3], var=VAR, var_joinids=GENES)
    with pytest.raises(
        SelectionError, match="no row for 2 of the 5 values of 'dataset_id' in obs: 'data set 1', 'data s"
    ):
        make(uri)
    assert len(masks(make(uri, obs_query={"dataset_id": ["data set 2"]}))) == 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.iloc[1:], "no row for 1 of the 5 values of 'dataset_id' in obs: 'data set 4'"),
        (lambda table: table.iloc[:, 2:], "no column for 2 of 14 genes, by 'soma_joinid' of var: 1, 3; add them"),
        (
            lambda table: table.set_axis([f"g{j}" for j in range(G)], axis=1),
            "no column for 14 of 14 genes, by 'feature_",
        ),
        (lambda table: table * 2, "must be True or False, or 1 or 0"),
        (lambda table: table.where(table), "must be True or False, or 1 or 0, none of them missing"),
        (lambda table: table.astype(str), "must be True or False"),
        (lambda table: pd.concat([table, table]), "'data set 4' is in the index of the table twice"),
        (lambda table: pd.concat([table, table], axis=1), "1 is in the columns of the table twice"),
        (lambda table: table.rename_axis("study"), "obs has no column 'study'"),
        (lambda table: table.to_numpy(), "must be True, or a pandas.DataFrame"),
        (lambda table: None, "measured=None must be True, or a pandas.DataFrame"),
        (lambda table: "yes", "measured='yes' must be True"),
    ],
)
def test_bad_tables_are_named(census, change, message):
    with pytest.raises(SelectionError, match=message):
        make(census, measured=change(PRESENCE))


def test_cells_without_a_group_are_counted(tmp_path):
    obs = labelled_obs(10).assign(study=pd.Categorical(["a", None] * 5))
    uri = write_experiment(tmp_path / "cells.soma", addressed(10, 3), obs)
    table = pd.DataFrame(True, index=pd.Index(["a"], name="study"), columns=[0, 1, 2])
    with pytest.raises(SelectionError, match="5 of 10 cells have no value of 'study'.*obs_query=\"study != None\""):
        make(uri, measured=table)
    assert len(masks(make(uri, measured=table, obs_query="study != None"))) == 5
