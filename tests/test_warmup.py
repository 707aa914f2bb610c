"""Kernels are compiled before a progress bar starts, and the user is informed."""

import numba
import pytest

import cellfeed
from cellfeed import _progress
from cellfeed.command import demo
from cellfeed.command.warmup import compile_kernels


def compiling(X):
    """A transform that makes numba compile, as the first minibatch on a machine does."""
    numba.njit(lambda n: n + 1)(1)
    return X


def test_compilation_is_announced_once(store):
    """The announcement comes when numba compiles, and only then; the dataset's first epoch is still to come."""
    dataset = cellfeed.ExperimentDataset(store, batch_size=10, seed=0)
    compile_kernels(dataset, lambda: None)  # whatever this machine has not compiled yet
    compile_kernels(dataset, lambda: pytest.fail("nothing was compiled"))
    announced = []
    compile_kernels(dataset._with(transform=compiling), lambda: announced.append("compiling"))
    assert announced == ["compiling"]
    assert dataset.epoch == 0
    assert dataset.stats().n_minibatches == 0


def test_the_demo_says_that_it_compiles_before_its_bar_starts(store, capsys, monkeypatch):
    """A user sees a reason for the delay instead of a bar that stands still."""
    monkeypatch.setattr(_progress, "in_notebook", lambda: True)  # where the bar is shown, as on a terminal
    demo.run(store, "label", n_epochs=1, batch_size=16, transform=compiling)
    error = capsys.readouterr().err
    assert error.startswith(demo.COMPILING + "\n")
    assert "epoch 1/1" in error.split("\n", 1)[1]
    demo.run(store, "label", n_epochs=1, batch_size=16)
    assert demo.COMPILING not in capsys.readouterr().err
