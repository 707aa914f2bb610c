"""Measure a store on this machine: what ``cellfeed bench`` runs."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from tqdm.auto import tqdm

from cellfeed.dataset import ExperimentDataset
from cellfeed.errors import PlanError
from cellfeed.memory import format_bytes
from cellfeed.report import Plan
from cellfeed.stats import Stats


@dataclass(frozen=True)
class BenchResult:
    """What was measured; it prints as a table.

    Attributes
    ----------
    cells_per_second
        Cells received per second, from the first ``next`` on.
    first_s
        Seconds to the first minibatch: opening, compilation and the first block.
    n_obs
        Cells received.
    peak_bytes
        Largest resident memory of the whole process, where the system tells it, else 0.
    plan, stats
        Of the dataset.
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


def run(uri: str, *, seconds: float = 30.0, progress: bool = True, **parameters: Any) -> BenchResult:
    """Read a store for some seconds, or until a pass ends, and do nothing with the cells.

    Parameters
    ----------
    uri
        A SOMA experiment.
    seconds
        When to stop, at least 0.
    progress
        Show a progress bar.
    parameters
        Further parameters of :class:`cellfeed.ExperimentDataset`.

    Returns
    -------
    :class:`BenchResult`; ``print`` it.
    """
    if not seconds > 0:
        raise PlanError(f"seconds={seconds!r} must be more than 0")
    dataset = ExperimentDataset(uri, **parameters)
    n_obs, first_s = 0, 0.0
    started = time.perf_counter()
    with tqdm(total=dataset.shape[0], unit=" cells", unit_scale=True, disable=not progress) as bar:
        for minibatch in dataset:
            first_s = first_s or time.perf_counter() - started
            size = len(minibatch.obs) if minibatch.obs.ndim == 2 else 1
            n_obs += size
            bar.update(size)
            if time.perf_counter() - started > seconds:
                break
    elapsed = time.perf_counter() - started
    return BenchResult(n_obs / elapsed, first_s, n_obs, _peak_bytes(), dataset.plan(), dataset.stats())


def _peak_bytes() -> int:
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
