"""Credentials are in nothing that is printed, logged, saved or raised; workers get them only to open arrays."""

import dataclasses
import io
import json
import logging
import pickle
import shutil
import traceback
import warnings

import pytest
import tiledbsoma as soma
import torch

import cellfeed
from cellfeed import CellfeedError, ExperimentDataset
from cellfeed.command.cli import main
from cellfeed.sources.anndata.files import AnnDataFile
from cellfeed.sources.redact import public_uri, redacted, secrets_of
from cellfeed.sources.soma.address import ArrayAddress
from tests.support.stores import addressed, labelled_obs, write_experiment

SECRET = "S3SAME"  # every planted secret begins so
KEYS = {
    "vfs.s3.aws_access_key_id": f"{SECRET}-id",
    "vfs.s3.aws_secret_access_key": f"{SECRET}/key+with=signs",
    "vfs.s3.aws_session_token": f"{SECRET}-token",
    "vfs.s3.proxy_password": f"{SECRET}-proxy",
    "vfs.azure.storage_account_key": f"{SECRET}-azure",
    "vfs.azure.storage_sas_token": f"?sig={SECRET}-sas",
    "vfs.gcs.service_account_key": f"{SECRET}-gcs",
    "rest.token": f"{SECRET}-rest",
    "rest.password": f"{SECRET}-rest-password",
}
URIS = {
    f"s3://AKIA:{SECRET}%2Fx@bucket/cells": "s3://bucket/cells",
    f"s3://AKIA:{SECRET}/x@bucket/cells": "s3://bucket/cells",
    f"https://{SECRET}@host/cells": "https://host/cells",
    f"https://host/cells?X-Amz-Signature={SECRET}&X-Amz-Date=1": "https://host/cells",
    f"azure://account/cells?sig={SECRET}": "azure://account/cells",
    f"https://host/cells#{SECRET}": "https://host/cells",
    f"tiledb://space/s3://AKIA:{SECRET}@bucket/cells": "tiledb://bucket/cells",
}


@pytest.mark.parametrize(("uri", "shown"), URIS.items())
def test_public_uris(uri, shown):
    assert public_uri(uri) == shown
    assert SECRET not in redacted(f"cannot open '{uri}': denied ({uri}/__schema)", secrets_of(uri))
    assert SECRET not in repr(ArrayAddress(uri, 0, KEYS)) + str(ArrayAddress(uri, 0, KEYS))


@pytest.mark.parametrize(
    "uri", ["/data/a?b#c@d", "s3://bucket/who@home/cells", "file:///data/a?b", "my_experiment", ""]
)
def test_what_is_no_secret_is_shown(uri):
    assert public_uri(uri) == uri
    assert redacted(f"no {uri} here", secrets_of(uri)) == f"no {uri} here"


@pytest.mark.parametrize("key", sorted(KEYS))
def test_settings_that_are_secret(key):
    assert SECRET not in redacted(f"403 for {KEYS[key]}", secrets_of("", KEYS))
    assert secrets_of("", {"vfs.s3.region": "us-west-2", "vfs.s3.verify_ssl": "true"}) == frozenset()


@pytest.fixture
def secretive(tmp_path):
    """A store opened with credentials in its settings."""
    uri = write_experiment(tmp_path / "cells", addressed(100, 30), labelled_obs(100))
    return uri, soma.SOMATileDBContext(tiledb_config=KEYS)


@pytest.fixture
def printed(caplog):
    """Collects all texts that a user can see: those that are added, and the log of every level."""
    caplog.set_level(logging.DEBUG, logger="cellfeed")
    shown = []
    yield shown
    shown += [record.getMessage() for record in caplog.records]
    assert shown
    assert not [text for text in shown if SECRET in text]


def traceback_of(error):
    return "".join(traceback.format_exception(error))


def test_no_text_of_a_success_has_a_secret(secretive, printed, monkeypatch):
    uri, context = secretive
    for direct in "10":
        monkeypatch.setenv("CELLFEED_DIRECT", direct)
        dataset = ExperimentDataset(uri, context=context, obs_column_names=["label"], batch_size=10, seed=0)
        loader = cellfeed.experiment_dataloader(dataset)
        iterator = iter(loader)
        minibatch = next(iterator)
        parts = dataset.random_split([0.5, 0.5], stratify="label")
        things = [
            dataset,
            loader,
            iterator,
            minibatch,
            *parts,
            dataset.plan(),
            dataset.stats(),
            dataset._engine.selection,
        ]
        things += [
            dataset._engine.settings,
            dataset._engine.media.source.planner,
            dataset._engine.epochs,
            dataset._engine.meter,
            dataset.obs_encoders,
        ]
        things += [
            dataset.plan("label").as_dict(),
            dataset._engine.selection.source.X,
            dataset._engine.selection.source.obs,
        ]
        printed += [text for thing in things for text in (repr(thing), str(thing))]
        printed += [json.dumps(dataset.state_dict()), json.dumps(loader.state_dict())]


def test_a_copy_holds_no_secret(secretive, tmp_path):
    """Neither its records nor the files of a part that was left."""
    uri, context = secretive
    dataset = ExperimentDataset(uri, context=context, batch_size=10, seed=0, local_copy=tmp_path / "local")
    object.__setattr__(dataset._engine.selection, "experiment_uri", f"s3://AKIA:{SECRET}/x@bucket/cells")
    dataset.write_copy(tmp_path / "copy.zarr")
    next(iter(dataset))
    list(dataset)
    written = [path for name in ("copy.zarr", "local") for path in (tmp_path / name).rglob("*") if path.is_file()]
    assert len(written) > 10
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]


@pytest.mark.parametrize("uri", [uri for uri in sorted(URIS) if uri.startswith("s3://")])
def test_an_anndata_that_cannot_be_opened(uri, printed):
    file = AnnDataFile(f"{uri}.zarr", "zarr")
    printed += [repr(file), str(file)]
    for place in (f"{uri}.zarr", f"{uri}.zarr".replace("s3://", "memory://")):
        with pytest.raises(CellfeedError) as caught:
            ExperimentDataset(place)
        printed.append(traceback_of(caught.value))


def test_a_state_is_data(secretive):
    """No pickle is needed to read a checkpoint: PyTorch's safe loader takes it."""
    uri, context = secretive
    dataset = ExperimentDataset(uri, context=context, batch_size=10, seed=0)
    next(iter(dataset))
    file = io.BytesIO()
    torch.save({"data": dataset.state_dict()}, file)
    assert SECRET.encode() not in file.getvalue()
    file.seek(0)
    assert torch.load(file, weights_only=True)["data"] == dataset.state_dict()


def test_workers_are_sent_credentials_only_to_open_arrays(secretive):
    uri, context = secretive
    dataset = ExperimentDataset(uri, context=context, obs_column_names=["label"], batch_size=10, seed=0)
    assert SECRET.encode() in pickle.dumps(dataset)
    source = dataset._engine.selection.source
    bare = {name: dataclasses.replace(getattr(source, name), config={}) for name in ("X", "obs", "var")}
    object.__setattr__(dataset._engine.selection, "source", dataclasses.replace(source, **bare))
    assert SECRET.encode() not in pickle.dumps(dataset)


@pytest.mark.parametrize("uri", [*sorted(URIS), f"/nowhere/{SECRET[:0]}cells"])
def test_an_experiment_that_cannot_be_opened(uri, printed, capsys):
    settings = {**KEYS, "vfs.s3.endpoint_override": "127.0.0.1:9", "vfs.s3.scheme": "http"}
    settings |= {"vfs.s3.connect_max_tries": "1", "vfs.s3.connect_timeout_ms": "100", "vfs.azure.max_retries": "1"}
    settings |= {"rest.server_address": "http://127.0.0.1:9", "rest.retry_count": "0"}
    context = soma.SOMATileDBContext(tiledb_config=settings)
    if uri.startswith(("s3://", "/")):
        with pytest.raises(CellfeedError) as caught:
            ExperimentDataset(uri, context=context, retry_deadline_s=0.1)
        printed.append(traceback_of(caught.value))
    for wrong in (lambda: ExperimentDataset.from_query(uri), lambda: ExperimentDataset("/nowhere", context=KEYS)):
        with pytest.raises(CellfeedError) as caught:
            wrong()
        printed.append(traceback_of(caught.value))
    for arguments in (["plan", "store", uri], [uri], ["plan", "store", f"--{uri}"], ["plan", "store", "--seed", uri]):
        assert main(arguments) == 2
        printed += capsys.readouterr()


def test_a_cause_with_a_secret_is_shown_without_it(secretive, printed, monkeypatch):
    """TileDB's own messages may hold the URI or a key: they are cut, and not chained."""
    from cellfeed.sources.soma import tiledb_private

    uri, context = secretive
    monkeypatch.setenv("CELLFEED_DIRECT", "0")

    def fail(*_):
        raise RuntimeError(f"403 for {KEYS['rest.token']} at https://me:{SECRET}@host/cells?X-Amz-Signature={SECRET}")

    dataset = ExperimentDataset(uri, context=context, batch_size=10, seed=0)
    monkeypatch.setattr(tiledb_private, "read_pages", fail)
    with pytest.raises(CellfeedError, match="failed: 403 for ") as caught:
        list(dataset)
    printed.append(traceback_of(caught.value))


@pytest.mark.slow
@pytest.mark.parametrize("direct", ["1", "0"])
def test_failure_in_the_main_process_and_in_workers(secretive, printed, monkeypatch, direct):
    uri, context = secretive
    monkeypatch.setenv("CELLFEED_DIRECT", direct)
    dataset = ExperimentDataset(uri, context=context, obs_column_names=["label"], batch_size=10, seed=0)
    shutil.rmtree(uri)
    for attempt in (
        lambda: list(dataset),
        lambda: list(cellfeed.experiment_dataloader(dataset, num_workers=1)),
        lambda: dataset.random_split([0.5, 0.5], stratify="label"),
        lambda: dataset.plan("label"),
        lambda: dataset.load_state_dict({"version": KEYS}),
    ):
        with warnings.catch_warnings(record=True) as warned, pytest.raises(CellfeedError) as caught:
            attempt()
        printed += [traceback_of(caught.value), *(str(one.message) for one in warned)]
