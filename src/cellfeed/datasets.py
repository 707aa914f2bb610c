"""Example data: real cells to try cellfeed with. Needs scanpy: ``pip install "cellfeed[demo]"``."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from cellfeed.errors import MissingDependencyError, SelectionError
from cellfeed.sources.soma.address import locate


def pbmc700(path: str | Path | None = None) -> str:
    """Write 700 blood cells as a SOMA experiment, their counts as the layer ``X["raw"]``.

    Parameters
    ----------
    path
        A folder that does not exist yet. The default ``None`` writes to a temporary folder, once per process; the
        folder is removed when the process ends.

    Returns
    -------
    The URI of the experiment.

    Raises
    ------
    SelectionError
        If the folder exists.
    MissingDependencyError
        If scanpy, which ships the cells, is not installed.

    Examples
    --------
    >>> import tiledbsoma
    >>> with tiledbsoma.open(cellfeed.datasets.pbmc700()) as experiment:
    ...     experiment.obs.count
    700
    """
    return _in_temporary_folder() if path is None else _write(path)


@functools.cache
def _in_temporary_folder() -> str:
    folder = tempfile.mkdtemp(prefix="cellfeed-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return _write(Path(folder) / "pbmc700.soma")


def _write(path: str | Path) -> str:
    uri = locate(path)
    if Path(uri).exists():
        raise SelectionError(f"path={str(path)!r} exists; give a folder that does not exist")
    cells = pbmc700_anndata()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations between anndata and tiledbsoma
        import tiledbsoma.io

        # As a layer: tiledbsoma 2.3 fails on the X of anndata 0.13, which is the layer None there.
        cells.layers["raw"], cells.X = cells.X, None
        return str(tiledbsoma.io.from_anndata(uri, cells, measurement_name="RNA"))


def pbmc700_anndata() -> Any:
    """Return the 700 blood cells of :func:`~cellfeed.datasets.pbmc700` as an ``anndata.AnnData`` of counts.

    The cells are ``scanpy.datasets.pbmc68k_reduced``: 765 genes of peripheral blood cells from Zheng et al. (2017),
    with the type of each cell in the obs column ``bulk_labels``. scanpy ships the logarithms of counts scaled to
    10,000 molecules per cell. The obs column ``n_counts`` holds the molecules of each cell, which restore the counts.

    Raises
    ------
    MissingDependencyError
        If scanpy, which ships the cells, is not installed.

    Examples
    --------
    >>> cells = cellfeed.datasets.pbmc700_anndata()
    >>> cells.shape, int(cells.X.max())
    ((700, 765), 259)
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations between scanpy and anndata
        try:
            import anndata
            import scanpy
        except ImportError as cause:
            raise MissingDependencyError(
                f'cellfeed.datasets needs scanpy, which cannot be imported ({cause}): pip install "cellfeed[demo]"'
            ) from cause
        reduced = scanpy.datasets.pbmc68k_reduced()
        counts = reduced.raw.X.tocsr(copy=True)
        molecules = np.repeat(reduced.obs["n_counts"].to_numpy(), np.diff(counts.indptr))
        counts.data = np.rint(np.expm1(counts.data) * molecules / 1e4).astype(np.float32)
        return anndata.AnnData(X=counts, obs=reduced.obs, var=reduced.raw.var)
