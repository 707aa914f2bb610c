"""Write a copy of cells to train on: the work of ``cellfeed copy``."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cellfeed._checks import format_bytes, parse_bytes
from cellfeed.errors import MissingDependencyError, SelectionError
from cellfeed.loader.copying import bytes_of_files
from cellfeed.loader.dataset import ExperimentDataset
from cellfeed.loader.engine import Engine
from cellfeed.plan.settings import Settings
from cellfeed.sources.opening import select_from_paths


@dataclass(frozen=True)
class CopyResult:
    """A copy that was written; ``print`` shows its figures, and how to train on it.

    Attributes
    ----------
    path
        The folder.
    X_name
        The layer that was copied.
    n_obs, n_vars, nnz
        Cells, genes, and values of X.
    n_bytes
        Bytes of all files.
    elapsed_s
        Seconds from opening the source on.
    """

    path: str
    X_name: str
    n_obs: int
    n_vars: int
    nnz: int
    n_bytes: int
    elapsed_s: float

    def __str__(self) -> str:
        return (
            f"{self.n_obs:,} cells x {self.n_vars:,} genes in {self.path}: {format_bytes(self.n_bytes)}, "
            f"{self.n_bytes / max(self.nnz, 1):.2f} bytes per value, {self.n_obs / self.elapsed_s:,.0f} cells/s\n\n"
            f"To train on them:\n\n"
            f"    dataset = cellfeed.ExperimentDataset({self.path!r}, batch_size=128)\n"
            f"    for X, obs in cellfeed.experiment_dataloader(dataset): ..."
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the figures by name, for JSON."""
        return asdict(self)


def run(
    sources: Sequence[str],
    out: str,
    *,
    genes: str | None = None,
    var_column: str | None = None,
    obs_columns: Sequence[str] | None = None,
    compression: str = "lz4",
    memory_budget: str = "384 MiB",
    workers: int = 1,
    announce: Callable[[str], object] = print,
    progress: bool = True,
    **parameters: Any,
) -> CopyResult:
    """Write the cells of a SOMA experiment, or of one or several AnnData, to one AnnData in zarr.

    Parameters
    ----------
    sources
        Paths or URIs.
    out
        The folder to make.
    genes
        Names of genes, separated by commas, or a file with one name per line; ``None`` takes all genes.
    var_column
        The column of var that names genes.
    obs_columns, compression, progress
        As for :meth:`cellfeed.ExperimentDataset.write_copy`.
    memory_budget
        As for :class:`cellfeed.ExperimentDataset`; each worker has it.
    workers
        Processes that write; more than one write a collection, and need dask.
    announce
        Receives a line per source that says which layer is read.
    parameters
        Further parameters of :func:`cellfeed.sources.opening.select_from_paths`.

    Returns
    -------
    :class:`CopyResult`; ``print`` it.
    """
    started = time.perf_counter()
    if Path(out).exists():
        raise SelectionError(f"OUT={out!r} exists; give another folder, or remove it")
    selection = select_from_paths(sources, var_column=var_column, announce=announce, **parameters)
    dataset = ExperimentDataset._of(Engine(selection, Settings(memory_budget=parse_bytes(memory_budget))))
    if genes is not None:
        dataset = dataset.select_genes(_names(genes), var_column=var_column)
    with _client(workers) as client:
        path = dataset.write_copy(
            out, compression=compression, obs_columns=obs_columns, client=client, progress=progress
        )
    elapsed_s = time.perf_counter() - started
    return CopyResult(str(path), selection.X_name, *dataset.shape, _count_values(path), bytes_of_files(path), elapsed_s)


@contextlib.contextmanager
def _client(workers: int) -> Iterator[Any]:
    """Yield a client of dask for processes on this machine; ``None`` for one, which is this process."""
    if workers == 1:
        yield None
        return
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise MissingDependencyError(
            f'--workers={workers} needs dask, which is not installed: pip install "cellfeed[dask]"'
        ) from None
    # Dask would kill a process that takes its share of the memory; cellfeed bounds the memory itself.
    options = {"threads_per_worker": 1, "memory_limit": 0, "dashboard_address": None, "host": "127.0.0.1"}
    with LocalCluster(n_workers=workers, **options) as cluster, Client(cluster) as client:
        yield client


def _names(genes: str) -> list[str]:
    """Return the names in a list or in a file."""
    text = Path(genes).read_text() if Path(genes).is_file() else genes.replace(",", "\n")
    return [name.strip() for name in text.splitlines() if name.strip()]


def _count_values(path: Path) -> int:
    """Return the number of values of X, of all parts of a collection."""
    import zarr

    return sum(int(zarr.open_array(X / "data", mode="r").shape[0]) for X in path.glob("**/X"))
