"""TileDB's settings: cellfeed sets defaults, and never replaces a setting of the user."""

import multiprocessing
import os

import pytest
import tiledbsoma as soma

from cellfeed import ExperimentDataset
from cellfeed.select.labels import read_obs_column
from cellfeed.sources.soma import tiledb_private
from cellfeed.sources.soma.address import SAFE_SETTINGS
from cellfeed.sources.soma.experiment import open_experiment
from tests.support.processes import PATIENCE_S

[(MERGE, OFF)] = SAFE_SETTINGS.items()


@pytest.fixture(autouse=True)
def _as_tiledb_is(monkeypatch):
    monkeypatch.delenv("TILEDB_SM_QUERY_SPARSE_GLOBAL_ORDER_PREPROCESS_TILE_MERGE")
    tiledb_private._default_config.cache_clear()  # made while the setting of the tests was in the environment
    yield
    tiledb_private._default_config.cache_clear()


@pytest.fixture
def opened(monkeypatch):
    """Record the array and the settings of each call that opens something for reading."""
    seen = []
    for kind in (soma.DataFrame, soma.SparseNDArray):
        plain = kind.open

        def noted(uri, *args, plain=plain, **given):
            seen.append((uri.rsplit("/", 1)[-1], dict(given["context"].tiledb_config)))
            return plain(uri, *args, **given)

        monkeypatch.setattr(kind, "open", noted)
    return seen


def read_all(dataset):
    for _ in dataset:
        pass
    read_obs_column(dataset._engine.selection, "donor")


GIVEN = [(None, OFF), ({"sm.mem.total_budget": "1000000000"}, OFF), ({MERGE: "7"}, "7")]


@pytest.mark.parametrize(("given", "expected"), GIVEN)
@pytest.mark.parametrize("by_uri", [True, False])
def test_a_crash_of_tiledb_is_avoided(monkeypatch, store, opened, by_uri, given, expected):
    """TileDB's merge of tiles crashes the process once in 50,000 queries: it is off unless the user enables it."""
    monkeypatch.setenv("CELLFEED_DIRECT", "0")
    context = None if given is None else soma.SOMATileDBContext(tiledb_config=given)
    if by_uri:
        with open_experiment(store, context) as experiment:
            assert experiment.context.tiledb_config[MERGE] == expected
        read_all(ExperimentDataset(store, batch_size=50, context=context))
    else:
        with soma.open(store, context=context) as experiment:
            dataset = ExperimentDataset(experiment, batch_size=50)
        read_all(dataset)
    assert {name for name, _ in opened} == {"raw", "obs"}
    for _, config in opened:
        assert config[MERGE] == expected
        for name, value in (given or {}).items():
            assert config[name] == value


def test_a_safe_context_is_the_users():
    context = soma.SOMATileDBContext(timestamp=7, tiledb_config={"vfs.s3.region": "moon"})
    safe = tiledb_private.safe_context(context)
    assert safe.timestamp_ms == 7
    assert safe.tiledb_config["vfs.s3.region"] == "moon"
    assert MERGE not in tiledb_private.user_config(context)  # the settings of the user are unchanged


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_a_context_of_its_own_and_keeps_its_parents():
    """The threads of the parent's context do not exist in the child; to free that context would wait for them."""
    inherited = tiledb_private.safe_context(None)
    assert tiledb_private.safe_context(None) is inherited

    def compare(sender):
        own = tiledb_private.safe_context(None)
        sender.send((own is inherited, tiledb_private.safe_context(None) is own, len(tiledb_private._defaults)))

    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=compare, args=(sender,))
    child.start()
    sender.close()
    assert receiver.recv() == (False, True, len(tiledb_private._defaults) + 1)
    child.join(PATIENCE_S)
