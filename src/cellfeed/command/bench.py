"""Measure how fast this machine reads a store: the work of ``cellfeed bench``."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

from cellfeed._checks import format_bytes
from cellfeed._progress import progress_bar
from cellfeed.errors import PlanError
from cellfeed.loader.dataset import ExperimentDataset
from cellfeed.plan.summary import Plan
from cellfeed.stats import Stats


@dataclass(frozen=True)
class BenchResult:
    """The measurement of a store; ``print`` shows a table.

    Attributes
    ----------
    cells_per_second
        Cells received per second, from the first ``next`` on.
    first_s
        Seconds until the first minibatch: opening, compilation and the first fetch.
    n_obs
        Number of cells received.
    peak_bytes
        Peak resident memory of the process; 0 if the system does not report it.
    plan, stats
        The plan and the statistics of the dataset.
    """

    cells_per_second: float
    first_s: float
    n_obs: int
    peak_bytes: int
    plan: Plan
    stats: Stats

    def __str__(self) -> str:
        return (
            f"{self.plan}\n\n{self.stats}\n\n{self.cells_per_second:,.0f} cells/s, first minibatch after "
            f"{self.first_s:.2f} s, peak memory of the process {format_bytes(self.peak_bytes)}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the figures by name, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Measured:
    """Cells and seconds of a measurement.

    Attributes
    ----------
    n_obs
        Number of cells received.
    first_s
        Seconds until the first minibatch.
    elapsed_s
        Seconds from the first ``next`` on.
    """

    n_obs: int
    first_s: float
    elapsed_s: float

    @property
    def cells_per_second(self) -> float:
        """Cells received per second, from the first ``next`` on."""
        return self.n_obs / self.elapsed_s


def run(uri: str, *, seconds: float = 30.0, progress: bool = True, **parameters: Any) -> BenchResult:
    """Read a store for some seconds, or until the epoch ends, and discard the cells.

    Parameters
    ----------
    uri
        The URI of a SOMA experiment.
    seconds
        Duration from the first minibatch on; more than 0.
    progress
        Whether to show a progress bar.
    parameters
        Further parameters of :class:`cellfeed.ExperimentDataset`.

    Returns
    -------
    :class:`BenchResult`; ``print`` it.

    Raises
    ------
    PlanError
        If ``seconds`` is not more than 0.
    """
    check_seconds(seconds)
    dataset = ExperimentDataset(uri, **parameters)
    speed = measure(dataset, seconds=seconds, progress=progress)
    return BenchResult(
        speed.cells_per_second, speed.first_s, speed.n_obs, _peak_bytes(), dataset.plan(), dataset.stats()
    )


def check_seconds(seconds: float) -> None:
    """Raise a PlanError unless the duration of a measurement is positive and finite."""
    if not 0 < seconds < math.inf:
        raise PlanError(f"seconds={seconds!r} must be a number above 0: the duration of the measurement")


def measure(dataset: ExperimentDataset, *, seconds: float, progress: bool, title: str | None = None) -> Measured:
    """Receive minibatches for some seconds, or until the epoch ends, and discard the cells.

    Parameters
    ----------
    dataset
        The dataset to read.
    seconds
        Duration from the first minibatch on, because the first fetch alone can take longer.
    progress
        Whether to show a progress bar.
    title
        The text before the bar.
    """
    n_obs, first_s = 0, 0.0
    started = time.perf_counter()
    with progress_bar(progress, total=dataset.shape[0], unit=" cells", unit_scale=True, desc=title) as bar:
        for minibatch in dataset:
            first_s = first_s or time.perf_counter() - started
            size = len(minibatch.obs)
            n_obs += size
            bar.update(size)
            if time.perf_counter() - started > first_s + seconds:
                break
    return Measured(n_obs, first_s, time.perf_counter() - started)


def _peak_bytes() -> int:
    try:
        import resource
    except ImportError:  # on Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
