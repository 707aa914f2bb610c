"""Compile kernels before a progress bar starts, so that the bar measures reading only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cellfeed.loader.dataset import ExperimentDataset


def compile_kernels(dataset: ExperimentDataset, announce: Callable[[], object]) -> None:
    """Read one minibatch, so that the kernels for the types of a dataset are compiled or loaded from numba's cache.

    The epochs of the dataset are not affected.

    Parameters
    ----------
    dataset
        The dataset whose kernels are needed.
    announce
        Called once, when the compilation of the first kernel begins; not called if numba's cache holds all kernels.
    """
    from numba.core import event  # numba takes most of a second to import

    class Announcer(event.Listener):  # type: ignore[misc]
        announced = False

        def on_start(self, started: Any) -> None:  # numba's compiler lock is held: one thread at a time
            if not self.announced:
                self.announced = True
                announce()

        def on_end(self, ended: Any) -> None:
            pass

    with event.install_listener("numba:compile", Announcer()):
        next(iter(dataset._with()), None)
