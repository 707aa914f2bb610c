"""Addresses of stores: independent of later changes of the working folder; an address without a store is an error."""

from __future__ import annotations

import json
import os
from pathlib import Path

import anndata
import numpy as np
import pytest
import tiledbsoma as soma

import cellfeed
from cellfeed import ExperimentDataset, SelectionError
from cellfeed.sources.soma.address import locate
from tests.support.processes import run
from tests.support.stores import addressed, labelled_obs, write_experiment

CHANGES_FOLDERS = """
import json, os, pickle, sys
import cellfeed, tiledbsoma
from cellfeed import ExperimentDataset
from cellfeed.command.cli import main

first, second = sys.argv[1:]
os.chdir(first)
found = {"first": len(ExperimentDataset("x").obs_joinids)}
kept = ExperimentDataset("x", obs_column_names=["soma_joinid"])
os.chdir(second)
found["second"] = len(ExperimentDataset("x").obs_joinids)
found["after"] = sum(len(batch.obs) for batch in kept)
with open(first + "/pickle", "wb") as file:
    pickle.dump(kept, file)
cellfeed.write_obsm("x", "X_mine", [15], [[1.0]])
with tiledbsoma.open(second + "/x") as experiment:
    found["written"] = list(experiment.ms["RNA"].obsm)
main(["plan", "x"])
cellfeed.datasets.pbmc700("demo")
found["demo"] = os.path.isdir(second + "/demo")
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """Read ``x`` in a folder where it has 10 cells, then in a folder where it has 20."""
    folders = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    for folder, n_obs in zip(folders, (10, 20), strict=True):
        write_experiment(folder / "x", addressed(n_obs, 3), labelled_obs(n_obs))
    printed = run("-W", "ignore", "-c", CHANGES_FOLDERS, *folders)
    return {**json.loads(printed.splitlines()[-1]), "plan": printed, "pickle": folders[0] / "pickle"}


def test_a_relative_path_means_the_working_folder_of_the_moment(moved):
    """TileDB keeps the first working folder of the process; datasets, the command and ``write_obsm`` do not."""
    assert (moved["first"], moved["second"]) == (10, 20)
    assert moved["written"] == ["X_mine"]
    assert "20 x 3" in moved["plan"]
    assert moved["demo"]


def test_a_dataset_finds_its_store_after_the_working_folder_changed(moved, tmp_path):
    """In the process of the dataset, and in another one that unpickles it."""
    assert moved["after"] == 10
    read = "import pickle, sys; print(sum(len(b.obs) for b in pickle.load(open(sys.argv[1], 'rb'))))"
    assert run("-c", f"import os; os.chdir({str(tmp_path)!r}); {read}", moved["pickle"]).split() == ["10"]


def test_a_uri_stays_and_a_path_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for uri in ("s3://bucket/cells", "file:///data/cells", "/data/cells", "tiledb://space/cells"):
        assert locate(uri) == uri
    for path in ("cells", "./cells", Path("cells"), "cells/"):
        assert locate(path) == f"{tmp_path}/cells"
    assert locate("~/cells") == f"{tmp_path}/~/cells"
    assert locate("../cells") == f"{tmp_path}/../cells"  # not its parent, where the folder is a link


def test_a_path_that_was_a_uri_is_refused():
    with pytest.raises(SelectionError, match="lost a slash.*'s3://...'"):
        ExperimentDataset(Path("s3://bucket/cells"))
    with pytest.raises(SelectionError, match="empty text"):
        ExperimentDataset("")


def cells():
    return anndata.AnnData(np.ones((3, 2), np.float32))


@pytest.mark.filterwarnings("ignore:Writing zarr v2")
def test_anndata_is_an_address_too(tmp_path):
    """In a file and in zarr, of any name; one in memory is refused with the way to write it."""
    with pytest.raises(SelectionError, match=r'AnnData is not.*adata.write_h5ad\("cells.h5ad"\)'):
        ExperimentDataset(cells())
    cells().write_h5ad(tmp_path / "my.h5ad")
    for name in ("my.zarr", "other"):
        cells().write_zarr(tmp_path / name)
    for name in ("my.h5ad", "my.zarr", "other"):
        assert ExperimentDataset(tmp_path / name).shape == (3, 2)
    with pytest.raises(SelectionError, match="'cells.h5ad' does not exist"):
        ExperimentDataset("cells.h5ad")


def test_nothing_at_an_address_is_one_error_without_others_behind_it(tmp_path):
    with pytest.raises(SelectionError, match="experiment='nowhere' is not.*there is no '.*/nowhere'; give") as caught:
        ExperimentDataset("nowhere")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    with pytest.raises(SelectionError, match="'~' is not expanded"):
        ExperimentDataset("~/nowhere")
    (tmp_path / "notes").touch()
    with pytest.raises(SelectionError, match="the file holds no SOMA object"):
        ExperimentDataset(tmp_path / "notes")


def test_a_query_as_experiment_names_the_call(store):
    with soma.open(store) as experiment:
        query = experiment.axis_query("RNA")
        with pytest.raises(SelectionError, match=r"ExperimentAxisQuery is not.*ExperimentDataset.from_query\("):
            ExperimentDataset(query)


def test_writing_to_something_else_than_an_experiment_is_an_error(store):
    with pytest.raises(SelectionError, match="experiment='nowhere' is not a SOMA experiment.*there is no"):
        cellfeed.write_obsm("nowhere", "X_a", [0], [[1.0]])
    with pytest.raises(SelectionError, match="experiment=3 must be a tiledbsoma.Experiment, or the URI or path of one"):
        cellfeed.write_obsm(3, "X_a", [0], [[1.0]])
    with pytest.raises(SelectionError, match="is a Measurement, not a tiledbsoma.Experiment"):
        cellfeed.write_obsm(f"{store}/ms/RNA", "X_a", [0], [[1.0]])
    with pytest.raises(SelectionError, match="context= is a dict; give a tiledbsoma.SOMATileDBContext"):
        cellfeed.write_obsm(store, "X_a", [0], [[1.0]], context={})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize("way", ["process", "pool", "dataloader", "lightning", "open", "query"])
def test_a_forked_child_reads_with_a_dataset_of_its_own(store, way):
    """Children read after the parent has read, and while it reads; a TileDB context works in one process only.

    ``open`` and ``query``: an experiment that the parent has opened, and a query of one.
    """
    if way == "lightning":
        pytest.importorskip("lightning_utilities", reason="Lightning is not installed")
    # As TileDB sets it, unlike the tests: with threads at work wherever TileDB has some.
    usual = {"TILEDB_SM_QUERY_SPARSE_GLOBAL_ORDER_PREPROCESS_TILE_MERGE": "32768"}
    printed = run("-W", "ignore", "-m", "tests.programs.forked", store, way, **usual)
    found = json.loads(next(line for line in printed.splitlines() if line.startswith("[[")))
    if way == "dataloader":  # each worker of PyTorch reads its share
        found = [sorted(joinid for share in found for joinid in share)]
    assert found == [list(range(100))] * len(found)
