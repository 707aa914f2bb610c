"""Worker processes: what reaches them, which cells they read, and which loaders are refused."""

import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import time
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from torch.utils.data import ChainDataset, ConcatDataset, DataLoader, DistributedSampler, IterableDataset, Subset
from torch.utils.data import random_split as torch_split

import cellfeed
from cellfeed import ExperimentDataPipe, ExperimentDataset, LabelEncoder, PlanError, ReadError, experiment_dataloader
from cellfeed.loader.workers import WorkerGroup, sending
from cellfeed.transforms import Compose, Log1p, NormalizeTotal, SelectGenes
from tests.support.processes import ENVIRONMENT, ROOT, run


def joinids_of(minibatches):
    return [joinid for minibatch in minibatches for joinid in minibatch.obs[:, 0].tolist()]


def make(store, **parameters):
    return ExperimentDataset(store, **{"obs_column_names": ["soma_joinid"], "batch_size": 8, "seed": 3, **parameters})


class Shift:
    """A transform with a large array."""

    def __init__(self, n=1 << 20):
        self.by = np.ones(n)

    def __call__(self, X):
        return X + float(self.by[-1])


# ------------------------------------------------------------------ ranks


def test_workers_read_the_cells_of_the_rank_of_their_main_process(store, monkeypatch):
    """Workers find no rank themselves: neither in the environment nor in a process group of their own."""
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
    """They may train one model or one each, so each gets all cells; the warning says what to do in either case."""
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


# ------------------------------------------------------------------ passes


def test_loaders_begun_together_have_epochs_of_their_own(store):
    """The one that gives its first minibatch first makes pass 0, the other pass 1; one loader begun twice, too."""
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
    """Plain or multiprocessing's pickle: where several ranks are sent one dataset, each begins with pass 0."""
    dataset = make(store)
    copies = [pickle.loads(pickle.dumps(dataset)), ForkingPickler.loads(ForkingPickler.dumps(dataset))]
    expected = joinids_of(dataset)
    assert [joinids_of(copy) for copy in copies] == [expected] * 2


# ------------------------------------------------------------------ what is sent


def test_what_goes_through_the_pipe_to_a_worker_is_small(store):
    """A pipe holds 64 KiB: a parent that writes more waits for a child that may have died. Arrays are mapped."""
    dataset = make(store, transform=Shift())
    with sending(dataset, WorkerGroup(2)):
        sent = ForkingPickler.dumps(dataset)
    assert len(sent) < 4096
    there = ForkingPickler.loads(sent)
    assert np.array_equal(there.obs_joinids, dataset.obs_joinids)
    assert there._engine.settings.transform.by.flags.writeable
    assert not there._engine.settings.transform.by.flags.owndata
    assert len(pickle.dumps(dataset)) > 8 << 20  # any other pickle is a whole copy


def test_a_script_that_does_not_guard_its_start_gets_an_error(store):
    """Its workers end before they have read what is sent to them; the parent neither waits for ever nor is silent."""
    done = subprocess.run(
        [sys.executable, ROOT / "tests/programs/unguarded.py", store],
        cwd=ROOT, env=ENVIRONMENT, text=True, capture_output=True, timeout=120,
    )  # fmt: skip
    assert "a worker was lost" in done.stdout, done.stderr
    assert 'if __name__ == "__main__"' in done.stdout


def program(code, store):
    return subprocess.run(
        [sys.executable, "-c", code, store], cwd=ROOT, env=ENVIRONMENT, text=True, capture_output=True, timeout=120
    )


def test_definitions_of_a_prompt_are_refused_before_workers_start(store):
    """Workers cannot find a transform there; an encoder they do not need, and its codes reach them."""
    code = """
import sys, cellfeed
class Twice:
    def __call__(self, X): return X * 2
class Mine(cellfeed.LabelEncoder): pass
dataset = cellfeed.ExperimentDataset(sys.argv[1], encoders=[Mine("label")], seed=0)
print(sum(len(X) for X, obs in cellfeed.experiment_dataloader(dataset, num_workers=1)))
try:
    cellfeed.experiment_dataloader(dataset._with(transform=Twice()), num_workers=1)
except cellfeed.PlanError as error:
    print(error)
"""
    done = program(code, store)
    assert done.returncode == 0, done.stderr
    n_cells, message = done.stdout.splitlines()
    assert n_cells == "100"
    assert "'Twice', which is defined in a notebook or at a prompt" in message
    assert "define it in a module" in message
    assert "num_workers=0" in message


def test_a_class_in_place_of_a_transform_is_refused(store):
    for transform in (Log1p, LabelEncoder):
        with pytest.raises(PlanError, match=rf"transform={transform.__name__} is a class.*{transform.__name__}\(\)"):
            make(store, transform=transform)
    with pytest.raises(PlanError, match="transform=Log1p is a class"):
        Compose(Log1p)


def test_what_cannot_be_pickled_is_refused_when_the_loader_is_made(store):
    with pytest.raises(PlanError, match="transform=<function.*lambda.* cannot be sent to workers.*num_workers=0"):
        experiment_dataloader(make(store, transform=lambda X: X), num_workers=2)
    with pytest.raises(PlanError, match="worker_init_fn=.*cannot be sent to workers"):
        experiment_dataloader(make(store), num_workers=2, worker_init_fn=lambda k: None)
    assert len(list(experiment_dataloader(make(store, transform=lambda X: X)))) == 13


class Lost:
    """Can be pickled, and not be made again."""

    def __call__(self, X):
        return X

    def __setstate__(self, state):
        raise ImportError("no module 'mine'")

    def __getstate__(self):
        return {"a": 1}


def test_what_a_worker_cannot_make_again_is_said_in_the_main_process(store):
    loader = experiment_dataloader(make(store, transform=Lost()), num_workers=1)
    with pytest.raises(PlanError, match="a worker process cannot make the dataset.*no module 'mine'"):
        next(iter(loader))


class Ends:
    """Ends the process that makes it from its pickle, without an error; or holds it up."""

    def __init__(self, how, argument):
        self.made_by = how, (argument,)

    def __call__(self, X):
        return X

    def __reduce__(self):
        return self.made_by


@pytest.mark.parametrize(
    ("transform", "timeout", "message"),
    [
        (Ends(os._exit, 0), 600, "a worker was lost.*worker 0 had not begun.*No worker had begun"),
        (Ends(time.sleep, 600), 3, "no minibatch came for 3 s: worker 0 had not begun"),
    ],
)
def test_a_worker_that_ends_or_hangs_before_it_begins_is_noticed(store, transform, timeout, message):
    """Whatever its exit code says; one that ends, far within the time-out."""
    loader = experiment_dataloader(make(store, transform=transform), num_workers=1, timeout=timeout)
    with pytest.raises(ReadError, match=message):
        next(iter(loader))
    assert multiprocessing.active_children() == []


# ------------------------------------------------------------------ other loaders


@pytest.mark.parametrize("cls", [ExperimentDataset, ExperimentDataPipe])
def test_a_loader_that_would_stack_minibatches_is_refused(store, cls):
    dataset = cls(store, batch_size=8, seed=0)
    with pytest.raises(PlanError, match="minibatches of minibatches.*experiment_dataloader.*batch_size=None"):
        next(iter(DataLoader(dataset, batch_size=4)))
    if cls is ExperimentDataset:
        with pytest.raises(PlanError, match="minibatches of minibatches"):
            next(iter(DataLoader(ChainDataset([dataset, dataset]), batch_size=4)))
    assert len(list(DataLoader(dataset, batch_size=None))) == 13


class Cells(IterableDataset):
    """Takes minibatches apart."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __iter__(self):
        for X, obs in self.dataset:
            yield from zip(X, obs, strict=True)


def test_loaders_that_put_together_what_is_apart_are_served(store):
    """Single cells, minibatches that another dataset takes apart, and a collate_fn of one's own."""
    single = list(DataLoader(ExperimentDataPipe(store, obs_column_names=["soma_joinid"]), batch_size=40))
    assert [tuple(X.shape) for X, obs in single] == [(40, 30), (40, 30), (20, 30)]
    apart = list(DataLoader(Cells(make(store)), batch_size=40))
    assert [tuple(X.shape) for X, obs in apart] == [(40, 30), (40, 30), (20, 30)]
    joined = list(DataLoader(make(store), batch_size=5, collate_fn=lambda ms: torch.cat([m.X for m in ms])))
    assert [len(X) for X in joined] == [40, 40, 20]


def test_minibatches_have_no_numbers(store):
    """PyTorch's ways to divide a dataset by index: an error that names the dataset's own."""
    dataset = make(store)
    for divided in (Subset(dataset, [0, 1]), torch_split(dataset, [10, 3])[0]):
        with pytest.raises(PlanError, match="dataset.random_split"):
            next(iter(DataLoader(divided, batch_size=None)))
    with pytest.raises((AssertionError, TypeError)):
        ConcatDataset([dataset])
    with pytest.raises(ValueError, match="sampler"):
        DataLoader(dataset, batch_size=None, sampler=DistributedSampler(dataset, 2, 0))


def test_workers_of_another_loader_are_refused(store):
    """They cannot know the epoch or the rank, and no state counts what they send."""
    loader = DataLoader(make(store), batch_size=None, num_workers=1, multiprocessing_context="spawn")
    with pytest.raises(PlanError, match=r"cellfeed.experiment_dataloader\(dataset, num_workers=1\)"):
        next(iter(loader))


class Lazy(IterableDataset):
    """Makes its dataset where it is iterated."""

    def __init__(self, store, **parameters):
        self.store, self.parameters = store, parameters

    def __iter__(self):
        dataset = make(self.store, **self.parameters)
        yield from ([(obs[:, 0].tolist()) for _, obs in dataset] for _ in range(2))


def test_datasets_that_workers_make_themselves_share_the_cells(store):
    """With one seed: their passes count on; without, each would draw its own order, and cells would be lost."""
    options = {"batch_size": None, "num_workers": 2, "multiprocessing_context": "spawn"}
    passes = list(DataLoader(Lazy(store), **options))
    for epoch in range(2):
        assert sorted(j for of in passes[2 * epoch : 2 * epoch + 2] for m in of for j in m) == list(range(100))
    assert passes[0] != passes[2]
    with pytest.raises(PlanError, match="seed=None with 2 workers"):
        list(DataLoader(Lazy(store, seed=None), **options))


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize("stop_at", [1, 5])
def test_torchdata_goes_on_without_workers_and_is_refused_with_them(store, stop_at):
    stateful = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is not installed")
    whole = [m.obs[:, 0].tolist() for m in make(store)]
    loader = stateful.StatefulDataLoader(make(store), batch_size=None)
    before = []
    for minibatch in loader:
        before.append(minibatch.obs[:, 0].tolist())
        if len(before) == stop_at:
            state = loader.state_dict()
            break
    other = stateful.StatefulDataLoader(make(store), batch_size=None)
    other.load_state_dict(state)
    after = [m.obs[:, 0].tolist() for m in other]
    assert before + after == whole
    workers = stateful.StatefulDataLoader(make(store), batch_size=None, num_workers=1, multiprocessing_context="spawn")
    with pytest.raises(PlanError, match="cellfeed.experiment_dataloader"):
        next(iter(workers))


# ------------------------------------------------------------------ devices, forks


@pytest.mark.filterwarnings("ignore:1 of 3 genes are not in the store")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_default_device_changes_nothing(store, num_workers):
    """Tensors name their device: "meta", on which nothing has values, stands for any."""
    var_names = [f"G{k}" for k in range(30)]
    transform = Compose(NormalizeTotal(), SelectGenes(["G7", "G2", "new"], var_names, missing="zeros"), Log1p())
    ways = {"return_sparse_X": True, "use_eager_fetch": False}, {"rank_remainder": "pad"}, {"batch_size": 1}

    def everything():
        for way in ways[: 1 if num_workers else None]:  # starting a worker takes seconds
            dataset = make(store, transform=transform, obs_column_names=["label"], **way)
            loader = experiment_dataloader(dataset, num_workers=num_workers)
            yield from (tensor for minibatch in loader for tensor in minibatch)
            loader.load_state_dict(loader.state_dict())
        yield from (tensor for minibatch in cellfeed.inference_dataloader(dataset) for tensor in minibatch)

    expected = list(everything())
    torch.set_default_device("meta")
    try:
        found = list(everything())
    finally:
        torch.set_default_device(None)
    assert all(torch.equal(a.to_dense(), b.to_dense()) for a, b in zip(expected, found, strict=True))


def test_minibatches_move_to_a_device_as_a_whole(store):
    dataset = make(store, rank_remainder="pad", return_sparse_X=True)
    for source in (make(store), dataset, cellfeed.inference_dataloader(make(store))):
        minibatch = next(iter(source))
        there = minibatch.to("meta", non_blocking=True)
        assert type(there) is type(minibatch)
        assert [t.device.type for t in there] == ["meta"] * len(minibatch)
        assert [t.shape for t in there] == [t.shape for t in minibatch]


def _next_in_a_fork(iterator, pipe):
    try:
        next(iterator)
    except ReadError as error:
        pipe.send(str(error))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_process_forked_in_the_middle_of_a_pass_gets_an_error(store, num_workers):
    """The threads that read are the parent's, whose pass goes on."""
    iterator = iter(experiment_dataloader(make(store), num_workers=num_workers))
    met = joinids_of([next(iterator)])
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_next_in_a_fork, args=(iterator, theirs))
    child.start()
    assert ours.poll(60)
    assert "the process from which this one was forked" in ours.recv()
    child.join(60)
    assert child.exitcode == 0
    assert sorted(met + joinids_of(iterator)) == list(range(100))
