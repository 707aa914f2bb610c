"""Data that is sent to worker processes, and workers that cannot receive it."""

import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest

from cellfeed import ExperimentDataset, LabelEncoder, PlanError, ReadError, experiment_dataloader
from cellfeed.loader.workers import WorkerGroup, sending
from cellfeed.transforms import Compose, Log1p
from tests.support.processes import ENVIRONMENT, PATIENCE_S, ROOT, run


def make(store, **parameters):
    return ExperimentDataset(store, **{"obs_column_names": ["soma_joinid"], "batch_size": 8, "seed": 3, **parameters})


class Shift:
    """A transform with a large array."""

    def __init__(self, n=1 << 20):
        self.by = np.ones(n)

    def __call__(self, X):
        return X + float(self.by[-1])


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
    """Its workers end before they have read the dataset from the pipe; the parent raises an error and does not hang."""
    done = subprocess.run(
        [sys.executable, ROOT / "tests/programs/unguarded.py", store],
        cwd=ROOT, env=ENVIRONMENT, text=True, capture_output=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert "a worker was lost" in done.stdout, done.stderr
    assert 'if __name__ == "__main__"' in done.stdout


def program(code, store):
    command = [sys.executable, "-c", code, store]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, text=True, capture_output=True, timeout=PATIENCE_S)


def test_workers_receive_the_definitions_of_a_prompt(store):
    """Workers cannot import a transform from a prompt, so they receive its code, and the globals that it uses."""
    code = """
import sys, cellfeed
FACTOR = 2
class Times:
    def __call__(self, X): return X * FACTOR
class Mine(cellfeed.LabelEncoder): pass
def begin(worker): print("begun", worker, flush=True)
dataset = cellfeed.ExperimentDataset(sys.argv[1], encoders=[Mine("label")], seed=0)
times = dataset._with(transform=Times())
loader = cellfeed.experiment_dataloader(times, num_workers=1, worker_init_fn=begin)
print(sum(X.sum().item() for X, obs in loader) / sum(X.sum().item() for X, obs in dataset))
"""
    done = program(code, store)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["begun 0", "2.0"]


def test_a_class_in_place_of_a_transform_is_refused(store):
    for transform in (Log1p, LabelEncoder):
        with pytest.raises(PlanError, match=rf"transform={transform.__name__} is a class.*{transform.__name__}\(\)"):
            make(store, transform=transform)
    with pytest.raises(PlanError, match="transform=Log1p is a class"):
        Compose(Log1p)


def test_what_cannot_be_pickled_is_refused_when_the_loader_is_made(store):
    lock = threading.Lock()
    with pytest.raises(PlanError, match="transform=<function.*lambda.* cannot be sent to workers.*num_workers=0"):
        experiment_dataloader(make(store, transform=lambda X: X if lock else None), num_workers=2)
    with pytest.raises(PlanError, match="worker_init_fn=.*cannot be sent to workers"):
        experiment_dataloader(make(store), num_workers=2, worker_init_fn=lambda k: lock)
    assert len(list(experiment_dataloader(make(store, transform=lambda X: X if lock else None)))) == 13


def test_a_script_sends_its_own_definitions_by_name(store, tmp_path):
    """Workers import the script, so its globals may be objects that no pickle can hold, such as locks."""
    script = tmp_path / "script.py"
    script.write_text("""
import sys, threading, cellfeed
LOCK = threading.Lock()
def double(X):
    with LOCK:
        return X * 2
if __name__ == "__main__":
    dataset = cellfeed.ExperimentDataset(sys.argv[1], seed=0)
    loader = cellfeed.experiment_dataloader(dataset._with(transform=double), num_workers=1)
    print(sum(X.sum().item() for X, obs in loader) / sum(X.sum().item() for X, obs in dataset))
""")
    assert run(script, store) == "2.0\n"


class Lost:
    """A transform that can be pickled and not unpickled."""

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
    """Ends the process that unpickles it, without an error, or stops it."""

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
    """A worker that ends is noticed with any exit code, and long before the timeout."""
    earlier = multiprocessing.active_children()
    loader = experiment_dataloader(make(store, transform=transform), num_workers=1, timeout=timeout)
    with pytest.raises(ReadError, match=message):
        next(iter(loader))
    (worker,) = loader._workers.processes
    worker.join(PATIENCE_S)  # the kernel may need a moment to end it
    assert set(multiprocessing.active_children()) <= set(earlier)
