"""Whole processes: ranks under torchrun, runs that are killed, workers that die or hang, and endings."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from cellfeed import ExperimentDataset, ReadError, experiment_dataloader
from tests.support.processes import PATIENCE_S, python, torchrun


@pytest.mark.parametrize(("n_ranks", "rank_remainder"), [(3, "drop"), (2, "pad")])
def test_ranks_under_torchrun(store, tmp_path, n_ranks, rank_remainder):
    """DDP training ends; lengths are right; each cell comes once per epoch; ranks get other cells in each epoch."""
    parameters = {"batch_size": 8, "soma_chunk_size": 3, "shuffle_chunk_count": 4, "rank_remainder": rank_remainder}
    torchrun(n_ranks, "tests.programs.ddp", store, tmp_path, json.dumps(parameters), 0, 2)
    ranks = [json.loads((tmp_path / f"rank{r}.json").read_text()) for r in range(n_ranks)]
    for workers in ("0", "2"):
        sets = []
        for epoch in range(2):
            by_rank = [rank[workers][epoch] for rank in ranks]
            assert {r["length"] for r in by_rank} == {len(r["received"]) for r in by_rank}
            assert len({r["length"] for r in by_rank}) == 1
            joinids = [joinid for r in by_rank for minibatch in r["received"] for joinid in minibatch]
            assert len(set(joinids)) == len(joinids)
            assert 100 - n_ranks < len(joinids) <= 100
            assert len(joinids) == 100 or rank_remainder == "drop"
            sets.append([frozenset(j for minibatch in r["received"] for j in minibatch) for r in by_rank])
        assert all(first != second for first, second in zip(*sets, strict=True))
    for rank in ranks:  # a rank's cells do not depend on its workers
        for epoch in range(2):
            of = [sorted(j for m in rank[w][epoch]["received"] for j in m) for w in ("0", "2")]
            assert of[0] == of[1]


@pytest.mark.timeout(900)  # it starts up to ten processes, one after another
@pytest.mark.parametrize(("num_workers", "n_kills"), [(0, 8), (2, 3)])
def test_killed_and_continued(store, tmp_path, num_workers, n_kills):
    """A run that is killed at random steps and resumed from its last state receives the cells of an undisturbed run."""
    chance = random.Random(num_workers)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    for folder in (straight, broken):
        folder.mkdir()
    undisturbed = python("-m", "tests.programs.killed", store, straight, json.dumps({"num_workers": num_workers}))
    options = json.dumps({"num_workers": num_workers, "sleep_s": 0.05})
    kills = 0
    while not (broken / "done").exists():
        process = python("-m", "tests.programs.killed", store, broken, options)
        before = steps(broken)
        if kills < n_kills:
            wanted = before + chance.randint(1, 60 // n_kills)
            while steps(broken) < wanted and process.poll() is None:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait(timeout=PATIENCE_S)
        assert [path for path in Path("/dev/shm").iterdir() if f"_{process.pid}_" in path.name] == []
    assert undisturbed.wait(timeout=PATIENCE_S) == 0
    assert kills == n_kills
    history = json.loads((broken / "state.json").read_text())["history"]
    assert history == json.loads((straight / "state.json").read_text())["history"]
    assert len(history) == 3 * 20


def steps(folder):
    saved = folder / "state.json"
    return len(json.loads(saved.read_text())["history"]) if saved.exists() else 0


@pytest.fixture
def doomed(make_store):
    """A loader with two workers that are reading, its iterator, and the process numbers of the workers."""
    dataset = ExperimentDataset(make_store(3000), batch_size=4, soma_chunk_size=2, shuffle_chunk_count=50, seed=0)
    loader = experiment_dataloader(dataset, num_workers=2, timeout=PATIENCE_S, persistent_workers=True)
    assert sum(len(X) for X, _ in loader) == 3000
    loader.timeout = 15  # the workers have started
    iterator = iter(loader)
    next(iterator)
    return loader, iterator, loader._workers.monitor._pids.tolist()


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_dies_or_hangs(doomed, sent):
    """The error says what the workers were reading. No worker remains, and the next epoch starts new ones."""
    loader, iterator, pids = doomed
    os.kill(pids[0], sent)
    activity = "was (not )?reading.*, of '.*raw'"
    with pytest.raises(ReadError, match=f"worker 0 \\(process {pids[0]}\\) {activity}"):
        for _ in iterator:
            pass
    while any(alive(pid) for pid in pids):
        time.sleep(0.05)
    loader.timeout = PATIENCE_S
    if sent == signal.SIGKILL:
        assert sum(len(X) for X, _ in loader) == 3000


def test_a_worker_that_dies_during_a_step_disturbs_it_not(doomed):
    """Whatever the main thread does then runs to its end; the loader raises the error when it is asked next."""
    _, iterator, pids = doomed
    os.kill(pids[0], signal.SIGKILL)
    ended = time.monotonic() + PATIENCE_S
    while alive(pids[0]) and time.monotonic() < ended:
        time.sleep(0.01)
    assert sum(range(1_000_000)) == 499_999_500_000
    with pytest.raises(ReadError, match="a worker was lost"):
        for _ in iterator:
            pass


def test_an_error_in_a_worker_ends_all_workers_at_once(make_store):
    """No worker remains, though the error, and with it the loader, is held."""
    dataset = ExperimentDataset(make_store(3000), batch_size=4, seed=0, transform=fails)
    loader = experiment_dataloader(dataset, num_workers=2, persistent_workers=True)
    with pytest.raises(ZeroDivisionError) as held:
        next(iter(loader))
    assert loader._workers.processes
    assert not any(process.is_alive() for process in loader._workers.processes)
    assert held.value.__traceback__


def fails(X):
    raise ZeroDivisionError


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_start_methods(store, method):
    dataset = ExperimentDataset(store, obs_column_names=["soma_joinid"], batch_size=7, return_sparse_X=True)
    loader = experiment_dataloader(dataset, num_workers=2, multiprocessing_context=method)
    assert sorted(j for m in loader for j in m.obs[:, 0].tolist()) == list(range(100))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("how", ["break", "error", "interrupt", "exit"])
def test_endings(store, how, num_workers):
    """However a loop ends, the process and its workers end by themselves; threads, files and memory are released."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = python("-m", "tests.programs.endings", store, how, num_workers, **pipes)
    output, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors[-20_000:]
    found = json.loads(output)
    assert found["after"] == (None if how == "exit" else found["before"])
    assert len(found["workers"]) == num_workers
    assert not any(alive(pid) for pid in found["workers"])
    assert not [path for path in Path("/dev/shm").iterdir() if f"_{process.pid}_" in path.name]
