"""Provenance records the cells and genes of a training; other data are recognised as different."""

import json
from importlib.metadata import PackageNotFoundError

import pytest
import tiledbsoma as soma

from cellfeed import EncodeError, ExperimentDataset, LabelEncoder, StateError, _versions
from cellfeed.loader.provenance import check_classes, check_record
from cellfeed.sources.redact import public_uri
from cellfeed.transforms import Compose, Log1p, NormalizeTotal


def test_the_record_holds_cells_genes_queries_and_splits_as_plain_values(store):
    query = soma.AxisQuery(value_filter="label == 'type 1'")
    dataset = ExperimentDataset(store, obs_query=query, seed=7, transform=Compose(NormalizeTotal(), Log1p()))
    train, test = dataset.random_split({"train": 0.5, "test": 0.5}, seed=3, stratify="donor")
    inner, _ = train.random_split([0.9, 0.1], seed=4)
    record = inner.provenance()
    assert json.loads(json.dumps(record)) == record
    assert record["obs_query"] == {"value_filter": "label == 'type 1'", "coords": None}
    assert record["var_query"] is None
    assert [(split["part"], split["seed"], split["stratify"]) for split in record["splits"]] == [
        ("train", 3, "donor"),
        (0, 4, None),
    ]
    assert (record["seed"], record["n_genes"], record["transform"]) == (
        7,
        30,
        "Compose(NormalizeTotal(10000), Log1p())",
    )
    assert set(record["versions"]) == {"cellfeed", "tiledbsoma", "torch", "numpy"}
    again = ExperimentDataset(store, obs_query=query, seed=7, transform=Compose(NormalizeTotal(), Log1p()))
    again = again.random_split([0.5, 0.5], seed=3, stratify="donor")
    assert train.provenance() != test.provenance()
    assert again[0].provenance()["obs_joinids"] == train.provenance()["obs_joinids"]
    assert dataset.select_genes(["G2", "G1"]).provenance()["genes"] != dataset.provenance()["genes"]


def test_a_package_that_is_not_installed_has_records_without_its_version(store, tmp_path, monkeypatch):
    """It may be imported from a folder, as in a checkout on PYTHONPATH: data and copies have records there, too."""

    def of_installed(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr(_versions, "version", of_installed)
    dataset = ExperimentDataset(store, seed=0)
    assert dataset.provenance()["versions"]["cellfeed"] is None
    copy = ExperimentDataset(dataset.write_copy(tmp_path / "copy.zarr"), seed=0)
    assert copy.shape == dataset.shape


def test_secrets_stay_out():
    signed = "s3://key:word@bucket/cells.soma?X-Amz-Signature=0123#part"
    assert public_uri(signed) == "s3://bucket/cells.soma"


def test_other_genes_and_transforms_are_refused_by_name(store):
    dataset = ExperimentDataset(store, seed=0, transform=Log1p())

    def check(other):
        check_record(
            dataset.provenance(), dataset.gene_names().tolist(), other.provenance(), other.gene_names().tolist()
        )

    check(dataset.random_split([0.5, 0.5])[0])  # inference may have other cells
    with pytest.raises(StateError, match="2 are missing \\('G0', 'G1'\\); select them by name"):
        check(dataset.select_genes([f"G{k}" for k in range(2, 30)]))
    with pytest.raises(StateError, match="their order differs"):
        check(dataset.select_genes([f"G{k}" for k in reversed(range(30))]))
    with pytest.raises(StateError, match="trained with transform=Log1p\\(\\), and these data have transform=None"):
        check(ExperimentDataset(store, seed=0))


def test_codes_that_stand_for_other_values_are_refused(store):
    """A label missing in the new cells shifts the codes behind it: an error, until the known classes are given."""
    saved = {"label": ExperimentDataset(store, obs_column_names=["label"]).obs_encoders["label"].classes_.tolist()}
    query = soma.AxisQuery(value_filter="label != 'type 0'")
    fewer = ExperimentDataset(store, obs_query=query, obs_column_names=["label"])
    with pytest.raises(StateError, match="codes of 'label' .*'type 0' are on one side only"):
        check_classes(saved, {"label": fewer.obs_encoders["label"].classes_.tolist()})
    known = LabelEncoder("label", classes=saved["label"])
    same = ExperimentDataset(store, obs_query=query, encoders=[known], shuffle=False, batch_size=4)
    check_classes(saved, {"label": known.classes_.tolist()})
    assert next(iter(same)).obs[:, 0].tolist() == [1, 2, 1, 2]
    with pytest.raises(EncodeError, match="was not fitted on 'type 0'"):
        ExperimentDataset(store, encoders=[LabelEncoder("label", classes=["type 1", "type 2"])])
    with pytest.raises(EncodeError, match="must be distinct, and None must be the last"):
        LabelEncoder("label", classes=["a", None, "b"])
