"""AnnData for tests, written by anndata itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from cellfeed.sources.anndata.files import AnnDataFile, anndata_files
from tests.support.stores import addressed

KINDS = ("h5ad", "zarr2", "zarr3")


def write(adata: anndata.AnnData, folder: Path, kind: str = "h5ad", name: str = "cells", **options: Any) -> AnnDataFile:
    """Write an AnnData as one of :data:`KINDS`."""
    with warnings.catch_warnings(), anndata.settings.override(zarr_write_format=int(kind[-1]) if kind != "h5ad" else 2):
        warnings.simplefilter("ignore")  # of zarr, about consolidated metadata, and of anndata, about its next version
        path = folder / f"{name}.{kind.rstrip('23')}"
        (adata.write_h5ad if kind == "h5ad" else adata.write_zarr)(path, **options)
    return anndata_files(path)[0]


def obs_of_every_type() -> pd.DataFrame:
    """Four cells; each type of column that anndata writes."""
    return pd.DataFrame(
        {
            "label": pd.Categorical(["b", None, "a", "b"], categories=["b", "a", "unused"]),
            "stage": pd.Categorical(["low", "high", "low", None], categories=["low", "high"], ordered=True),
            "cluster": pd.Categorical([3, 1, 3, 1]),
            "count": pd.array([1, None, 3, 4], dtype="Int32"),
            "flag": pd.array([True, None, False, True], dtype="boolean"),
            "is_doublet": [True, False, True, False],
            "n_genes": np.array([5, 6, 7, 8], np.int32),
            "score": [0.5, np.nan, 2, 3],
            "text": ["x", "y", "z", "w"],
            "all_missing": pd.Categorical([None] * 4),
        },
        index=pd.Index([f"cell {i}" for i in range(4)]),
    )


def make_adata(
    n_obs: int = 4, n_vars: int = 3, *, change: Callable[[sp.csr_matrix], Any] = lambda X: X, **parts: Any
) -> anndata.AnnData:
    """Return an AnnData whose values encode (row, column), changed as its X is."""
    obs = parts.pop("obs", pd.DataFrame(index=[f"c{i}" for i in range(n_obs)]))
    var = parts.pop("var", pd.DataFrame(index=[f"g{j}" for j in range(n_vars)]))
    return anndata.AnnData(change(addressed(n_obs, n_vars)), obs=obs, var=var, **parts)
