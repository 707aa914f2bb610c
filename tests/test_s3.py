"""Stores on S3, with and without faults: exactly the right cells, or an error by the deadline."""

import contextlib
import json
import logging
import os
import subprocess
import sys
import time
import traceback

import numpy as np
import pytest
import tiledbsoma as soma

import cellfeed
from cellfeed import CellfeedError, ExperimentDataset, ReadError, SelectionError
from tests.support.fault_proxy import ProxyProcess
from tests.support.processes import PATIENCE_S
from tests.support.s3 import object_settings, s3_server
from tests.support.stores import addressed, collect, labelled_obs, write_experiment
from tests.support.threads import beside

N_OBS, N_VARS = 800, 30
SECRET = "S3SAME"


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """A server with one store, and a proxy before it: the store's URI, the proxy, and the server."""
    local = write_experiment(
        tmp_path_factory.mktemp("local") / "cells", addressed(N_OBS, N_VARS), labelled_obs(N_OBS), n_fragments=2
    )
    with s3_server() as server, ProxyProcess(server.endpoint) as proxy:
        yield server.upload(local), proxy, server


@pytest.fixture
def uri(s3):
    return s3[0]


@pytest.fixture
def server(s3):
    return s3[2]


@pytest.fixture
def proxy(s3):
    s3[1].set()
    yield s3[1]
    s3[1].set()


def context_of(proxy, *, request_timeout_s=30, **settings):
    settings = {"vfs.s3.request_timeout_ms": str(request_timeout_s * 1000), **settings}
    return soma.SOMATileDBContext(tiledb_config={**object_settings(proxy.endpoint), **settings})


@pytest.fixture
def make(uri, proxy):
    """Make a dataset of the store as it is seen through the proxy; requests end soon where the fault is silence."""

    def make(fault="", **parameters):
        context = context_of(proxy, request_timeout_s=1 if "silence" in fault else 30)
        parameters = {"obs_column_names": ["soma_joinid"], "batch_size": 10, "seed": 3, **parameters}
        return ExperimentDataset(uri, context=context, **parameters)

    return make


EXPECTED = addressed(N_OBS, N_VARS).toarray()


def order(dataset):
    """All cells of an epoch in their order; each must be right."""
    X, obs, _ = collect(dataset, N_VARS)
    np.testing.assert_array_equal(X, EXPECTED[obs[:, 0]])
    return obs[:, 0].tolist()


@pytest.fixture(scope="module")
def undisturbed(s3):
    uri, proxy, _ = s3
    proxy.set()
    return order(
        ExperimentDataset(uri, context=context_of(proxy), obs_column_names=["soma_joinid"], batch_size=10, seed=3)
    )


def test_a_pass_over_s3_by_every_path(make, reading_path, undisturbed):
    assert order(make()) == undisturbed
    assert sorted(undisturbed) == list(range(N_OBS))


def passing(proxy, has_begun, **faults):
    """Cause faults that end a second after ``has_begun()``, and before the next test."""

    def end(over):
        while not has_begun() and not over.wait(0.01):
            pass
        over.wait(1.0)
        proxy.set()

    proxy.set(**faults)
    return beside(end)


PASSING = {
    "outage of 1 s": {"down": True},
    "silence for 1 s": {"timeout": 1.0},
    "storm of 503 for 1 s": {"error": 0.5},
    "30 % reset": {"reset": 0.3},
    "30 % cut short": {"limit_data": 100, "limit_share": 0.3},
    "30 % of 500": {"error": 0.3, "status": 500},
    "50 ms of latency": {"latency_s": 0.05},
    "2 MB/s": {"bandwidth": 2e6},
}


@pytest.mark.parametrize("fault", PASSING)
def test_faults_that_pass_change_no_cell(make, proxy, reading_path, undisturbed, fault):
    dataset = make(fault)

    def has_begun():
        return dataset.stats().n_retries > 0 if fault == "outage of 1 s" else fault.endswith("1 s")

    with passing(proxy, has_begun, **PASSING[fault]):
        assert order(dataset) == undisturbed
    if fault == "outage of 1 s":
        assert dataset.stats().n_retries > 0
        assert dataset.stats().retry_wait_s > 0


LASTING = {"connection refused": {"down": True}, "silence": {"timeout": 1.0}, "slow down": {"error": 1.0}}


@pytest.mark.parametrize("fault", LASTING)
def test_an_outage_beyond_the_deadline_is_an_error(make, proxy, reading_path, undisturbed, fault):
    dataset = make(fault, retry_deadline_s=0.5)
    proxy.set(**LASTING[fault])
    with pytest.raises(
        ReadError, match=r"reading .*s3://cells/cells/ms/RNA/X/raw.*gave up after \d+ attempts? in"
    ) as caught:
        list(dataset)
    assert "retry_deadline_s=0.5" in str(caught.value)
    proxy.set()
    dataset.set_epoch(0)
    assert order(dataset) == undisturbed


@pytest.mark.parametrize("status", [403, 404])
def test_a_final_error_is_raised_at_once(make, proxy, reading_path, status):
    dataset = make()
    proxy.set(error=1.0, status=status)
    with pytest.raises(ReadError, match=str(status)):
        list(dataset)
    with pytest.raises(CellfeedError, match=str(status)):
        make()
    assert dataset.stats().n_retries == 0


@pytest.mark.parametrize("direct", ["1", "0"])
def test_an_array_created_again_is_refused(tmp_path, server, monkeypatch, direct):
    """It has the same number of values at the same URI; only the name of its first schema differs."""
    monkeypatch.setenv("CELLFEED_DIRECT", direct)
    X, obs = addressed(N_OBS, N_VARS), labelled_obs(N_OBS)
    for folder in "12":
        (tmp_path / folder).mkdir()  # tiledbsoma 2.0 makes none
    later = write_experiment(tmp_path / "2" / "cells", X * 1000, obs)
    uri = server.upload(write_experiment(tmp_path / "1" / "cells", X, obs), f"again{direct}")
    dataset = ExperimentDataset(uri, context=soma.SOMATileDBContext(tiledb_config=server.config()))
    assert sum(len(X) for X, _ in dataset) == N_OBS
    with contextlib.closing(server.client()) as client:
        for kept in client.list_objects_v2(Bucket=f"again{direct}")["Contents"]:
            client.delete_object(Bucket=f"again{direct}", Key=kept["Key"])
    server.upload(later, f"again{direct}")
    with pytest.raises(ReadError, match="is not the one from which cells were selected"):
        list(dataset)


def test_construction_outlives_an_outage(make, proxy, undisturbed, caplog):
    with passing(proxy, lambda: "failed, the next is in" in caplog.text, down=True):
        dataset = make()
    assert dataset.stats().n_retries > 0
    assert order(dataset) == undisturbed


def test_construction_and_labels_beyond_the_deadline(make, proxy, uri):
    dataset = make(retry_deadline_s=0.5)
    with soma.open(uri, context=context_of(proxy)) as experiment:
        proxy.set(down=True)
        for attempt in (
            lambda: make(retry_deadline_s=0.5),
            lambda: ExperimentDataset(experiment, retry_deadline_s=0.5),
            lambda: dataset.plan("label"),
            lambda: dataset.random_split([0.5, 0.5], stratify="label"),
        ):
            with pytest.raises(ReadError, match="gave up after"):
                attempt()


def test_a_missing_store_is_an_error_at_once(uri, proxy, caplog):
    """No attempt is repeated: a repetition would be logged."""
    caplog.set_level(logging.INFO, logger="cellfeed")
    for wrong in ("s3://cells/nothing", "s3://nowhere/cells"):
        with pytest.raises(SelectionError, match="is not a SOMA experiment"):
            ExperimentDataset(wrong, context=context_of(proxy))
    assert "failed, the next is in" not in caplog.text


def test_a_bucket_that_does_not_exist_is_named(proxy):
    with pytest.raises(SelectionError, match=r"no such bucket: check its name in the URI"):
        ExperimentDataset("s3://nowhere/cells", context=context_of(proxy))


def test_leaving_the_loop_in_an_outage_does_not_wait(make, proxy, reading_path):
    """Waiting for the reads in progress would take hours."""
    iterator = iter(make(soma_chunk_size=8, shuffle_chunk_count=1, memory_budget="100 KB", retry_deadline_s=10_000))
    next(iterator)
    proxy.set(down=True)
    time.sleep(0.3)  # further chunks are being read
    iterator.close()


def test_workers_and_ordered_inference(make, proxy):
    dataset = make()
    proxy.set(reset=0.1)
    inferred = [joinids for _, _, joinids in cellfeed.inference_dataloader(dataset)]
    assert np.concatenate(inferred).tolist() == list(range(N_OBS))
    assert sorted(order(cellfeed.experiment_dataloader(dataset, num_workers=2))) == list(range(N_OBS))


def test_credentials_are_in_no_text(uri, proxy, reading_path, caplog):
    caplog.set_level(logging.DEBUG, logger="cellfeed")
    keys = {"vfs.s3.aws_access_key_id": f"{SECRET}-id", "vfs.s3.aws_secret_access_key": f"{SECRET}/key"}
    context = context_of(
        proxy, **keys, **{"vfs.s3.no_sign_request": "false", "vfs.s3.aws_session_token": f"{SECRET}-x"}
    )
    dataset = ExperimentDataset(uri, context=context, obs_column_names=["soma_joinid"], seed=3, retry_deadline_s=0.3)
    order(dataset)
    texts = [repr(dataset), str(dataset.stats()), str(dataset.plan()), json.dumps(dataset.state_dict())]
    for fault in ({"down": True}, {"error": 1.0, "status": 403}):
        proxy.set(**fault)
        for attempt in (lambda: list(dataset), lambda: ExperimentDataset(uri, context=context, retry_deadline_s=0.3)):
            with pytest.raises(CellfeedError) as caught:
                attempt()
            texts.append("".join(traceback.format_exception(caught.value)))
    texts += [record.getMessage() for record in caplog.records]
    assert len(texts) >= 8
    assert not [text for text in texts if SECRET in text]


ENDING = """
import sys, json, cellfeed, tiledbsoma
uri, settings = sys.argv[1], json.loads(sys.argv[2])
context = tiledbsoma.SOMATileDBContext(tiledb_config=settings)
dataset = cellfeed.ExperimentDataset(uri, context=context, retry_deadline_s=0.2)
print("made", flush=True)
sys.stdin.readline()
try:
    list(dataset)
except cellfeed.ReadError as error:
    print("ReadError", flush=True)
"""


def test_a_process_ends_well_while_tiledb_still_tries(uri, proxy):
    """TileDB asks a store that says "slow down" a hundred times, and crashes if the process ends meanwhile."""
    command = [sys.executable, "-c", ENDING, uri, json.dumps(object_settings(proxy.endpoint))]
    environment = {**os.environ, "CELLFEED_DIRECT": "0"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        assert process.stdout.readline() == "made\n"
        proxy.set(error=1.0)
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ReadError\n"
        tried = proxy.counts["error"]
        while proxy.counts["error"] == tried:
            time.sleep(0.01)
        assert process.poll() is None
        proxy.set()
        _, output = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
