"""Worker processes: their ranks, their epochs and forks."""

import json
import multiprocessing
import os
import pickle
from multiprocessing.reduction import ForkingPickler

import pytest
import torch

from cellfeed import ExperimentDataset, ReadError, experiment_dataloader
from tests.support.processes import PATIENCE_S, run


def joinids_of(minibatches):
    return [joinid for minibatch in minibatches for joinid in minibatch.obs[:, 0].tolist()]


def make(store, **parameters):
    return ExperimentDataset(store, **{"obs_column_names": ["soma_joinid"], "batch_size": 8, "seed": 3, **parameters})


def test_workers_read_the_cells_of_the_rank_of_their_main_process(store, monkeypatch):
    """Workers do not look for ranks, neither in the environment nor in a process group of their own."""
    whole = [set(joinids_of(make(store, rank=rank, world_size=2))) for rank in range(2)]
    dataset = make(store)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=None: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda group=None: 1)
    loader = experiment_dataloader(dataset, num_workers=2)
    n_minibatches, received = len(loader), list(loader)
    assert len(received) == n_minibatches
    assert set(joinids_of(received)) == whole[1] != whole[0]


@pytest.mark.parametrize("way", ["spawn", "ddp", "ddp_spawn"])
def test_ranks_are_known_to_workers_however_they_were_started(store, tmp_path, way):
    """torch.multiprocessing.spawn, also with the variables of Lightning or SLURM around; Lightning's own two ways."""
    if way != "spawn":
        pytest.importorskip("pytorch_lightning", reason="Lightning is not installed")
    run("-m", "tests.programs.ranks", store, tmp_path, way)
    for name in ("spawn", "lightning", "slurm") if way == "spawn" else (way,):
        ranks = [json.loads((tmp_path / f"{name}{rank}.json").read_text()) for rank in range(2)]
        assert sorted(j for rank in ranks for j in rank["received"]) == list(range(100))
        assert [rank["length"] for rank in ranks] == [rank["n_minibatches"] for rank in ranks] == [7, 7]


SLURM = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        (SLURM, "SLURM_PROCID"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}, "SLURM_PROCID"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "2"}, "SLURM_PROCID"),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_RANK"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "0", "NODE_RANK": "0"}, "RANK"),
    ],
)
def test_processes_that_were_started_together_without_ranks_are_warned(store, monkeypatch, variables, name):
    """They may train one model or one each, so each gets all cells; the warning explains both cases."""
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    with pytest.warns(UserWarning, match=rf"each process gets all cells.*rank=int\(os.environ\['{name}'\]\)"):
        assert len(joinids_of(make(store))) == 100


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"},  # the shell of a batch job, a notebook in an allocation
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"},  # srun -n 1
        SLURM | {"RANK": "0", "WORLD_SIZE": "1"},
    ],
)
def test_a_lone_process_in_an_allocation_gets_all_cells_without_a_warning(store, monkeypatch, variables):
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert len(joinids_of(make(store))) == 100


def test_explicit_ranks_need_no_warning(store, monkeypatch):
    for variable, value in SLURM.items():
        monkeypatch.setenv(variable, value)
    assert len(joinids_of(make(store, rank=0, world_size=1))) == 100


def test_loaders_begun_together_have_epochs_of_their_own(store):
    """The loader that yields the first minibatch has epoch 0, the other epoch 1; so do two iterators of one loader."""
    dataset = make(store)
    expected = [joinids_of(dataset) for _ in range(2)]
    sets = [set(map(tuple, [m.obs[:, 0].tolist() for m in make_pass(store, epoch)])) for epoch in range(2)]
    assert expected[0] != expected[1]
    dataset.set_epoch(0)
    two = [experiment_dataloader(dataset, num_workers=1) for _ in range(2)]
    pairs = list(zip(*two, strict=True))
    for k in range(2):
        assert {tuple(pair[k].obs[:, 0].tolist()) for pair in pairs} == sets[k]
    dataset.set_epoch(0)
    first, second = iter(two[0]), iter(two[0])
    assert {tuple(m.obs[:, 0].tolist()) for m in second} == sets[0]
    assert {tuple(m.obs[:, 0].tolist()) for m in first} == sets[1]


def make_pass(store, epoch):
    dataset = make(store)
    dataset.set_epoch(epoch)
    return dataset


def test_of_two_iterators_begun_together_the_later_is_counted(store):
    dataset = make(store)
    first, second = iter(dataset), iter(dataset)
    for iterator in (first, second, first, first):
        next(iterator)
    assert dataset.state_dict()["epoch"] == 1
    assert dataset.state_dict()["segments"][0]["received"] == 1


def test_a_copy_in_another_process_counts_epochs_by_itself(store):
    """Plain or multiprocessing's pickle: where several ranks are sent one dataset, each begins with epoch 0."""
    dataset = make(store)
    copies = [pickle.loads(pickle.dumps(dataset)), ForkingPickler.loads(ForkingPickler.dumps(dataset))]
    expected = joinids_of(dataset)
    assert [joinids_of(copy) for copy in copies] == [expected] * 2


def _next_in_a_fork(iterator, pipe):
    try:
        next(iterator)
    except ReadError as error:
        pipe.send(str(error))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_process_forked_in_the_middle_of_a_pass_gets_an_error(store, num_workers):
    """The threads that read belong to the parent, which continues its epoch."""
    iterator = iter(experiment_dataloader(make(store), num_workers=num_workers))
    received = joinids_of([next(iterator)])
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_next_in_a_fork, args=(iterator, theirs))
    child.start()
    assert ours.poll(PATIENCE_S)
    assert "the process from which this one was forked" in ours.recv()
    child.join(PATIENCE_S)
    assert child.exitcode == 0
    assert sorted(received + joinids_of(iterator)) == list(range(100))
