"""Arrays that were written more than once, consolidated or vacuumed: the values are those of TileDB's own reader."""

import logging

import numpy as np
import pyarrow as pa
import pytest
import tiledbsoma as soma

from cellfeed import ExperimentDataset, ReadError
from tests.support.stores import addressed, collect, consolidate, write_experiment

N_OBS, N_VARS = 40, 12


def array_uri(uri):
    return f"{uri}/ms/RNA/X/raw"


def write(uri, rows, columns, values, timestamp=None):
    with soma.SparseNDArray.open(array_uri(uri), "w", tiledb_timestamp=timestamp) as array:
        array.write(pa.table({"soma_dim_0": rows, "soma_dim_1": columns, "soma_data": np.float32(values)}))


def passed(dataset):
    """X in the order of the cells."""
    X, joinids, _ = collect(dataset, N_VARS)
    return X[np.argsort(joinids[:, 0])]


def dataset_of(uri, **parameters):
    return ExperimentDataset(uri, obs_column_names=["soma_joinid"], seed=0, **parameters)


def as_tiledb_reads(uri, timestamp=None):
    with soma.open(array_uri(uri), tiledb_timestamp=timestamp) as array:
        table = array.read().tables().concat()
    X = np.zeros((N_OBS, N_VARS), np.float32)
    X[table["soma_dim_0"].to_numpy(), table["soma_dim_1"].to_numpy()] = table["soma_data"].to_numpy()
    return X


@pytest.mark.parametrize("vacuum", [True, False])
def test_values_that_were_overwritten_and_consolidated_are_the_newest(tmp_path, vacuum):
    """A consolidated fragment keeps the old values of a place, too; the array has one."""
    uri = write_experiment(tmp_path / "s", addressed(N_OBS, N_VARS), allows_duplicates=False)
    write(uri, [3, 3, 20], [0, 5, 7], [101, 102, 103])
    write(uri, [3], [5], [104])
    consolidate(array_uri(uri), vacuum=vacuum)
    expected = as_tiledb_reads(uri)
    assert expected[3, 5] == 104
    assert np.array_equal(passed(dataset_of(uri)), expected)
    genes = soma.AxisQuery(coords=([0, 5, 7],))
    X, joinids, _ = collect(dataset_of(uri, var_query=genes), 3)
    assert np.array_equal(X[np.argsort(joinids[:, 0])], expected[:, [0, 5, 7]])


def test_a_consolidated_array_is_read_directly_before_it_is_vacuumed(tmp_path, caplog):
    uri = write_experiment(tmp_path / "s", addressed(N_OBS, N_VARS), n_fragments=3)
    consolidate(array_uri(uri), vacuum=False)
    dataset = dataset_of(uri)
    index = dataset._engine.selection.source.open_tiles()
    assert len(index.fragments) == 1
    assert np.array_equal(passed(dataset), as_tiledb_reads(uri))


def test_a_dataset_keeps_its_timestamp_over_a_consolidation(tmp_path, caplog):
    """Cells appended later and consolidated with the earlier ones: only TileDB knows the time of each value."""
    uri = write_experiment(tmp_path / "s", addressed(N_OBS - 10, N_VARS))
    with soma.open(array_uri(uri), "w") as array:
        array.resize((N_OBS, N_VARS))
    dataset = dataset_of(uri)
    before = passed(dataset)
    rows = np.arange(N_OBS - 10, N_OBS)
    write(uri, rows, rows % N_VARS, rows, timestamp=dataset._engine.selection.source.X.timestamp_ms + 1)
    consolidate(array_uri(uri), vacuum=True)
    with caplog.at_level(logging.INFO, logger="cellfeed"):
        assert np.array_equal(passed(dataset), before)
    assert "is read through TileDB: fragment" in caplog.text


def test_values_that_a_writer_committed_late_are_named_as_the_cause(tmp_path):
    uri = write_experiment(tmp_path / "s", addressed(N_OBS, N_VARS, density=0.3))
    dataset = dataset_of(uri)
    write(uri, [0], [11], [7], timestamp=dataset._engine.selection.source.X.timestamp_ms - 1)
    with pytest.raises(ReadError, match="a writer that opened it before the dataset was made has added values"):
        passed(dataset)


@pytest.mark.parametrize("shape", [2**31 - 1, 2**62])
def test_all_genes_are_those_of_var_whatever_the_shape_of_the_array(tmp_path, shape):
    """Arrays with more columns than var has are verified as others are, and read directly."""
    X = addressed(N_OBS, N_VARS)
    obs = {"nnz": np.diff(X.indptr), "raw_sum": np.asarray(X.sum(axis=1)).ravel()}
    import pandas as pd

    for name, more in (("right", 0), ("wrong", 1)):
        figures = pd.DataFrame({**obs, "nnz": obs["nnz"] + more * (np.arange(N_OBS) == 17)})
        uri = write_experiment(tmp_path / name, X, figures, columns=shape)
        dataset = dataset_of(uri)
        assert dataset._engine.selection.source.open_tiles() is not None
        if more:
            with pytest.raises(ReadError, match="for soma_joinid 17, but obs has nnz="):
                passed(dataset)
        else:
            assert np.array_equal(passed(dataset), X.toarray())


def test_values_without_a_filter_are_read(tmp_path):
    uri = write_experiment(tmp_path / "s", addressed(N_OBS, N_VARS), unfiltered=("soma_data",))
    dataset = dataset_of(uri)
    assert dataset._engine.selection.source.open_tiles() is not None
    assert np.array_equal(passed(dataset), addressed(N_OBS, N_VARS).toarray())
