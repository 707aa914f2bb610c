"""Damage of a copy is found: changed bytes, metadata that differ, files that are missing."""

from __future__ import annotations

import json
import shutil
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from benchmarks import flips, flips_of_copies

from cellfeed import CellfeedError, ExperimentDataset, ReadError, SelectionError
from cellfeed.sources.anndata.sealing import CHECKSUM
from tests.support import copies
from tests.support.processes import apart
from tests.support.stores import addressed, labelled_obs, write_experiment

X = addressed(60, 30)


@pytest.fixture(autouse=True)
def _small_layout(monkeypatch):
    copies.make_layout_small(monkeypatch.setattr)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A copy by ``write_copy``, of labels the first of which is that of all cells, and a collection of two parts."""
    folder = tmp_path_factory.mktemp("damage")
    obs = labelled_obs(60).assign(constant=pd.Categorical(["same"] * 60), zero=0)
    with pytest.MonkeyPatch.context() as patch:
        copies.make_layout_small(patch.setattr)
        source = write_experiment(folder / "cells.soma", X, obs)
        open_source(source).write_copy(folder / "single.zarr")
        for dataset in open_source(source, local_copy=folder / "parts.zarr").random_split([0.5, 0.5], seed=0):
            list(dataset)
    return folder


@pytest.fixture
def single(written, tmp_path):
    return shutil.copytree(written / "single.zarr", tmp_path / "single.zarr")


@pytest.fixture
def parts(written, tmp_path):
    return shutil.copytree(written / "parts.zarr", tmp_path / "parts.zarr")


def open_source(source, **options):
    return ExperimentDataset(source, obs_column_names=["soma_joinid", "constant"], seed=0, batch_size=8, **options)


def cells(dataset):
    return sorted(cell for minibatch in dataset for cell in copies.describe(minibatch))


def write_zarr(adata, path):
    """Write what another program writes: zarr v3 without checksums."""
    with ad.settings.override(zarr_write_format=3), warnings.catch_warnings(action="ignore"):
        adata.write_zarr(path)


def edit(file, change):
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def test_all_files_of_a_sound_copy_are_read(single, parts):
    for path in (single, parts):
        assert cells(open_source(path)) == copies.described(X)


@pytest.mark.parametrize("name", ["X/data", "X/indices", "X/indptr", "obs/constant/codes", "obs/constant/categories"])
def test_a_missing_file_is_an_error(single, name):
    """Zarr takes its values as 0: all cells would be cells of the first label, or without values."""
    for file in (single / name / "c").iterdir():
        file.unlink()
    with pytest.raises(CellfeedError, match=rf"{name}|c/0.*missing"):
        cells(open_source(single))


def test_a_missing_file_is_an_error_in_slow_reading_too(single, monkeypatch):
    """Where zarr decodes chunks, as without the library of Blosc."""
    monkeypatch.setattr("cellfeed.sources.anndata.parts.find_library", lambda: None)
    assert cells(open_source(single)) == copies.described(X)
    (single / "X" / "data" / "c" / "1").unlink()
    with pytest.raises(ReadError, match="file 'c/1' of '.*X/data' is missing"):
        cells(open_source(single))


def test_a_missing_chunk_of_another_writer_holds_zeros(tmp_path):
    """Such as annbatch's, or zarr itself."""
    obs, var = pd.DataFrame(index=[f"c{k}" for k in range(60)]), pd.DataFrame(index=[f"g{k}" for k in range(30)])
    empty = sp.vstack([X[:1], sp.csr_matrix((59, 30), dtype=np.float32)], format="csr")
    empty.data[:] = 0
    write_zarr(ad.AnnData(empty, obs.assign(constant=0, soma_joinid=range(60)), var), tmp_path / "other.zarr")
    assert not (tmp_path / "other.zarr" / "X" / "data" / "c").exists()
    assert cells(open_source(tmp_path / "other.zarr")) == copies.described(sp.csr_matrix((60, 30), dtype=np.float32))


def members(root):
    return root["consolidated_metadata"]["metadata"]


CHANGES = {
    "order of columns": lambda root: members(root)["obs"]["attributes"]["column-order"].sort(),
    "type": lambda root: members(root)["X/data"].update(data_type="int8"),
    "no checksum": lambda root: root["attributes"].pop(CHECKSUM),
    "another checksum": lambda root: root["attributes"].update({CHECKSUM: "0" * 16}),
    "no consolidated metadata": lambda root: root.pop("consolidated_metadata"),
    "no record": lambda root: members(root).pop("uns/cellfeed"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_metadata_are_an_error(single, change):
    edit(single / "zarr.json", CHANGES[change])
    with pytest.raises(CellfeedError, match="has damaged metadata: .*write the copy again"):
        open_source(single)


@pytest.mark.parametrize(
    "change",
    [
        lambda root: root["attributes"]["cellfeed"].update(n_obs=30),
        lambda root: root["attributes"].pop(CHECKSUM),
        lambda root: root["attributes"].pop("cellfeed"),
    ],
)
def test_changed_metadata_of_a_collection_are_an_error(written, parts, change):
    edit(parts / "zarr.json", change)
    for begin in (lambda: open_source(parts), lambda: open_source(str(written / "cells.soma"), local_copy=parts)):
        with pytest.raises(CellfeedError, match="has damaged metadata"):
            begin()


def test_a_collection_that_lacks_a_part_is_no_source(written, parts):
    """As a local copy it is completed."""
    shutil.rmtree(parts / "dataset_0")
    with pytest.raises(SelectionError, match=r"has \d+ rows of 60 cells: the copy is not complete, or a part is lost"):
        open_source(parts)
    assert cells(open_source(str(written / "cells.soma"), local_copy=parts)) == copies.described(X)
    assert cells(open_source(parts)) == copies.described(X)


def test_a_copy_that_others_write_again_is_theirs(single, tmp_path):
    """With the record of cellfeed, without its checksums."""
    write_zarr(ad.read_zarr(single), tmp_path / "again.zarr")
    assert cells(open_source(tmp_path / "again.zarr")) == copies.described(X)


@pytest.mark.parametrize(("axis", "lengths"), [("obs", "59 and 30"), ("var", "60 and 29")])
def test_tables_of_another_length_are_an_error(single, tmp_path, axis, lengths):
    adata = ad.read_zarr(single)
    write_zarr(adata, tmp_path / "other.zarr")
    root = zarr.open_group(tmp_path / "other.zarr", mode="a", use_consolidated=False)
    with warnings.catch_warnings(action="ignore"):
        ad.io.write_elem(root, axis, getattr(adata, axis).iloc[:-1])
        zarr.consolidate_metadata(root.store)
    with pytest.raises(SelectionError, match=f"obs and var have {lengths} rows: the file is damaged"):
        open_source(tmp_path / "other.zarr")


@pytest.mark.slow
def test_flipped_bits_of_copies():
    """Each is found, or changes nothing; see also ``benchmarks/results``."""
    counts = apart(flips_of_copies.run, 300, 5)  # a fork of this process would lack the threads of earlier tests
    outcomes = {outcome for kind in counts.values() for outcome in kind}
    assert outcomes <= {flips.RIGHT, flips.OUR_ERROR}, counts
    assert {kind.partition(":")[0] for kind in counts} == {"X", "obs", "var", "uns", "metadata"}
