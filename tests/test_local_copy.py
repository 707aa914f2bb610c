"""Epochs with a local copy: who writes it, when it is read, and what continues after a restore."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import cellfeed
from cellfeed import (
    ExperimentDataset,
    LabelEncoder,
    PlanError,
    ReadError,
    SelectionError,
    StateError,
    experiment_dataloader,
)
from cellfeed.sources.anndata.copies.layout import Layout
from cellfeed.sources.anndata.copies.part_writer import PartWriter
from tests.support.processes import torchrun
from tests.support.sources import Cells

CELLS = Cells.make(100)
N, G = CELLS.X.shape
ALL = CELLS.joinids.tolist()


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that is not complete keeps the rows of its complete shards, here of 48 values."""
    monkeypatch.setattr(Layout.__init__, "__defaults__", ("lz4", 16, 3))


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return CELLS.write_soma(tmp_path_factory.mktemp("stores") / "cells.soma")


@pytest.fixture
def make(uri: str, tmp_path: Path) -> Callable[..., ExperimentDataset]:
    def make(**parameters: Any) -> ExperimentDataset:
        defaults = {"seed": 5, "batch_size": 7, "soma_chunk_size": 4, "shuffle_chunk_count": 3}
        defaults |= {"obs_column_names": ["soma_joinid"], "local_copy": tmp_path / "copy"}
        return ExperimentDataset(uri, **{**defaults, **parameters})

    return make


def joinids_of(minibatches: Any, n: int | None = None) -> list[list[int]]:
    """The joinids of the next ``n`` minibatches, whose rows are checked."""
    found = []
    for X, obs, *_ in itertools.islice(minibatches, n):
        assert np.array_equal(X.numpy(), CELLS.X[(obs[:, 0].numpy() - 2) // 3].toarray())
        found.append(obs[:, 0].tolist())
    return found


def flat(minibatches: Any, n: int | None = None) -> list[int]:
    return list(itertools.chain.from_iterable(joinids_of(minibatches, n)))


def medium_of(dataset: ExperimentDataset) -> str:
    """Where the next epoch reads."""
    return dataset._engine.epochs.next_medium(0, 1).name


# Writing and reading


def test_the_first_epoch_writes_and_the_next_ones_read(make):
    dataset = make()
    source = joinids_of(make(local_copy=None))
    assert medium_of(dataset) == "source"
    assert joinids_of(dataset) == source
    assert medium_of(dataset) == "copy"
    second, third = joinids_of(dataset), joinids_of(dataset)
    assert second != third
    assert sorted(itertools.chain(*second)) == sorted(itertools.chain(*third)) == ALL
    again = make()
    again.set_epoch(1)
    assert joinids_of(again) == second  # in another process, too: the order depends on seed, epoch and copy


def test_codes_of_joinids_are_codes_in_a_copy(make):
    """An encoder of ``soma_joinid`` is an encoder like any other: its codes are not replaced by the joinids."""
    dataset = make(obs_column_names=(), encoders=[LabelEncoder("soma_joinid")])
    for medium in ("source", "copy"):
        assert medium_of(dataset) == medium
        codes = [code for _, obs in dataset for code in obs[:, 0].tolist()]
        assert sorted(codes) == list(range(len(ALL)))


def test_the_source_is_not_read_when_the_copy_is_complete(make):
    list(make())
    dataset = make()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(dataset._engine.selection.source), "open_reader", None)
        assert sorted(flat(dataset)) == ALL


@pytest.mark.parametrize("n_before", [3, 8, 14])
def test_an_epoch_that_was_left_is_continued(make, tmp_path, monkeypatch, n_before):
    """Rows in complete shards stay; the next epoch over the source appends the others only."""
    iterator = iter(make())
    flat(iterator, n_before)
    iterator.close()
    (unfinished,) = (tmp_path / "copy").glob("*.partial")
    n_kept = sum(len(np.load(path)) for path in unfinished.glob("journal/X/*.npy"))
    assert n_kept > 0
    appended: list[int] = []
    append = PartWriter.append
    monkeypatch.setattr(
        PartWriter, "append", lambda writer, rows: (appended.append(len(rows)), append(writer, rows))[1]
    )
    dataset = make(seed=6)
    assert sorted(flat(dataset)) == ALL
    assert sum(appended) == N - n_kept
    assert medium_of(dataset) == "copy"
    assert sorted(flat(dataset)) == ALL
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["dataset_0", "zarr.json"]


def test_splits_write_parts_of_one_copy(make, tmp_path):
    """A split is the same, and is read from the copy as soon as the copy has its cells."""
    train, test = make().random_split([0.7, 0.3], seed=1)
    of_source = [part.obs_joinids.tolist() for part in make(local_copy=None).random_split([0.7, 0.3], seed=1)]
    flat(train)
    assert (medium_of(train), medium_of(test), medium_of(make())) == ("copy", "source", "source")
    flat(test)
    assert medium_of(make()) == "copy"
    for part, expected in zip((train, test), of_source, strict=True):
        assert sorted(flat(part)) == expected
    assert sorted(flat(make())) == ALL
    assert len(list((tmp_path / "copy").glob("dataset_*"))) == 2


def test_a_dataset_of_some_genes_reads_a_copy_and_does_not_write_one(make, tmp_path):
    genes = ["G7", "G0"]
    expected = CELLS.X[:, [7, 0]].toarray()
    list(make().select_genes(genes))
    assert not list((tmp_path / "copy").glob("dataset_*"))
    list(make())
    dataset = make().select_genes(genes)
    assert medium_of(dataset) == "copy"
    for X, obs in dataset:
        assert np.array_equal(X.numpy(), expected[(obs[:, 0].numpy() - 2) // 3])


def test_cells_in_order_are_those_of_the_source(make):
    list(make())
    for X_dtype in ("float32", "float16"):
        loader = cellfeed.inference_dataloader(make(X_dtype=X_dtype), 9)
        assert torch.cat([joinids for _, _, joinids in loader]).tolist() == ALL


@pytest.mark.parametrize("X_dtype", ["float16", "bfloat16"])
def test_rounded_values_are_not_written(make, X_dtype):
    with pytest.raises(PlanError, match=f"X_dtype='{X_dtype}' with local_copy=: rows of a copy have the exact values"):
        make(X_dtype=X_dtype)
    list(make())
    X, obs = next(iter(make(X_dtype=X_dtype)))
    assert torch.equal(X, torch.from_numpy(CELLS.X[(obs[:, 0].numpy() - 2) // 3].toarray()).to(X.dtype))


def test_integers_are_copied_exactly_although_float32_is_read(tmp_path):
    large = sp.csr_matrix(CELLS.X.astype(np.int32) + (CELLS.X != 0).astype(np.int32) * 2**24)
    uri = Cells.make(N, X=large).write_soma(tmp_path / "large.soma")
    parameters = {"obs_column_names": ["soma_joinid"], "local_copy": tmp_path / "copy", "seed": 0}
    for X, obs in ExperimentDataset(uri, **parameters):
        assert np.array_equal(X.numpy(), large[(obs[:, 0].numpy() - 2) // 3].toarray().astype(np.float32))
    stored = ExperimentDataset(uri, X_dtype="stored", **parameters)
    assert medium_of(stored) == "copy"
    for X, obs in stored:
        assert np.array_equal(X.numpy(), large[(obs[:, 0].numpy() - 2) // 3].toarray())
    with pytest.raises(PlanError, match='which are float64; give X_dtype="stored"'):
        double = Cells.make(N, X=CELLS.X.astype(np.float64)).write_soma(tmp_path / "double.soma")
        ExperimentDataset(double, local_copy=tmp_path / "of double")


# What is refused


def test_another_copy_is_refused_by_the_name_of_the_difference(make, tmp_path):
    list(make())
    with pytest.raises(SelectionError, match="is a copy of n_obs=100, and this dataset has n_obs=50"):
        make(obs_query="flag == True")
    with pytest.raises(SelectionError, match="is a copy of n_vars=12, and this dataset has n_vars=7"):
        make(var_query="length >= 500")
    other = Cells.make(100).write_soma(tmp_path / "other.soma")
    with pytest.raises(SelectionError, match="is a copy of source="):
        ExperimentDataset(other, local_copy=tmp_path / "copy")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("")
    with pytest.raises(SelectionError, match="holds something else than a copy of cellfeed; give another path"):
        make(local_copy=tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_disk_that_fails_ends_the_writing_and_not_the_epoch(make, tmp_path, monkeypatch):
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    dataset = make()
    monkeypatch.setattr(PartWriter, "append", fail)
    with pytest.warns(UserWarning, match="is not written any more.*No space left on device.*; epochs continue"):
        assert sorted(flat(dataset)) == ALL
    assert medium_of(dataset) == "source"
    monkeypatch.undo()
    assert sorted(flat(make())) == ALL
    assert medium_of(make()) == "copy"


def test_a_damaged_part_ends_the_epoch_in_an_error(make, tmp_path):
    list(make())
    (values,) = (tmp_path / "copy").glob("dataset_0/X/data/c/0")
    damaged = bytearray(values.read_bytes())
    damaged[len(damaged) // 3] ^= 4
    values.write_bytes(damaged)
    with pytest.raises(ReadError, match="is damaged"):
        list(make())


# States


def test_an_epoch_of_the_source_is_finished_in_the_source(make):
    """A restore continues the order in which the epoch began, also when the copy is complete by now."""
    whole = joinids_of(make(local_copy=None))
    dataset = make()
    iterator = iter(dataset)
    joinids_of(iterator, 4)
    state = json.loads(json.dumps(dataset.state_dict()))
    iterator.close()
    list(make())
    restored = make()
    restored.load_state_dict(state)
    assert joinids_of(restored) == whole[4:]
    assert medium_of(restored) == "copy"
    without = make(local_copy=None)
    without.load_state_dict(state)
    assert joinids_of(without) == whole[4:]


def test_an_epoch_of_a_copy_needs_the_copy(make, tmp_path):
    list(make())
    dataset = make()
    iterator = iter(dataset)
    received = flat(iterator, 4)
    state = json.loads(json.dumps(dataset.state_dict()))
    with pytest.raises(StateError, match="the state belongs to an epoch of a local copy; give local_copy="):
        make(local_copy=None).load_state_dict(state)
    with pytest.raises(StateError, match="the state belongs to an epoch of a local copy"):
        make(local_copy=tmp_path / "new").load_state_dict(state)
    list(make(local_copy=tmp_path / "other", seed=8))
    with pytest.raises(StateError, match="the state was saved with obs_joinids="):
        make(local_copy=tmp_path / "other").load_state_dict(state)  # its rows have another order
    restored = make()
    restored.load_state_dict(state)
    assert sorted(received + flat(restored)) == ALL


def test_after_the_end_of_an_epoch_no_copy_is_needed(make):
    list(make())
    dataset = make()
    list(dataset)
    state = dataset.state_dict()
    for restored in (make(), make(local_copy=None)):
        restored.load_state_dict(state)
        assert restored.epoch == 1
        assert sorted(flat(restored)) == ALL


@pytest.mark.parametrize("rank_remainder", ["drop", "pad", "uneven"])
def test_an_epoch_of_a_copy_continues_on_other_ranks(make, rank_remainder):
    list(make())
    parameters = {"rank_remainder": rank_remainder}
    ranks = [make(rank=rank, world_size=2, **parameters) for rank in range(2)]
    received = [flat(iter(dataset), 3) for dataset in ranks]
    states = [dataset.state_dict() for dataset in ranks]
    rest = []
    for rank in range(3):
        dataset = make(rank=rank, world_size=3, **parameters)
        dataset.load_state_dict(states)
        rest += [m.obs[m.mask, 0].tolist() if rank_remainder == "pad" else m.obs[:, 0].tolist() for m in dataset]
    cells = list(itertools.chain(*received, *rest))
    assert len(set(cells)) == len(cells)
    assert len(cells) == N if rank_remainder != "drop" else len(cells) > N - 3
    parameters["batch_size"] = 11  # of 34, 33 and 33 cells, if ranks are uneven: 4, 3 and 3 minibatches
    finished = [make(rank=rank, world_size=3, **parameters) for rank in range(3)]
    for dataset in finished:
        list(dataset)
    again = make(**parameters)
    again.load_state_dict([dataset.state_dict() for dataset in finished])
    assert again.epoch == 1


# Several writers


@pytest.mark.filterwarnings("ignore:Consolidated metadata", "ignore:zarr v3 autosharding")  # filters are per process
def test_ranks_in_threads_write_one_copy(make):
    ranks = [make(rank=rank, world_size=3, rank_remainder="uneven") for rank in range(3)]
    received: list[list[int]] = [[], [], []]
    errors: list[BaseException] = []

    def train(rank: int) -> None:
        try:
            for _ in range(2):
                received[rank] = flat(ranks[rank])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=train, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sorted(itertools.chain(*received)) == ALL  # the second epoch: all ranks read the same medium
    again = [make(rank=rank, world_size=3, rank_remainder="uneven") for rank in range(3)]
    assert [dataset._engine.media.choose(2, rank, 3).name for rank, dataset in enumerate(again)] == ["copy"] * 3
    assert sorted(itertools.chain(*(flat(dataset) for dataset in again))) == ALL


@pytest.mark.slow
@pytest.mark.parametrize("persistent_workers", [False, True])
def test_worker_processes_write_and_read(make, tmp_path, persistent_workers):
    """Each worker writes a part; all workers of an epoch read the same medium."""
    dataset = make()
    loader = experiment_dataloader(dataset, num_workers=2, persistent_workers=persistent_workers)
    for _ in range(4 if persistent_workers else 2):  # starting a worker takes seconds
        assert sorted(flat(loader)) == ALL
    assert len(list((tmp_path / "copy").glob("dataset_*/obs"))) == 2
    assert not list((tmp_path / "copy").glob("*.partial"))
    iterator = iter(loader)
    received = flat(iterator, 5)
    state = loader.state_dict()
    assert state["fingerprint"]["medium"] == "copy"
    del iterator
    restored = make()
    restored.load_state_dict(state)
    assert sorted(received + flat(restored)) == ALL


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_under_torchrun_read_the_same_medium(uri, tmp_path, workers):
    """For 4 epochs, of which the last ones read the copy, each cell comes once."""
    torchrun(2, "tests.programs.copying", uri, tmp_path, workers)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    for epochs in zip(*ranks, strict=True):
        assert sorted(itertools.chain(*(epoch["received"] for epoch in epochs))) == ALL
        assert len({epoch["medium"] for epoch in epochs}) == 1
    assert [epoch["medium"] for epoch in ranks[0]] == ["source", "copy", "copy", "copy"]
