"""The same cells as every kind of source from which a dataset reads."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr

from cellfeed import ExperimentDataset
from tests.support.stores import addressed, labelled_obs, write_experiment

COLLECTION = {"encoding-type": "annbatch-preshuffled", "encoding-version": "0.1.0"}
"""Attributes that annbatch gives to the group of its parts."""


@dataclass(frozen=True)
class Cells:
    """Cells in memory; row ``i`` of ``X`` and ``obs`` is the cell ``joinids[i]``, and genes have joinids from 0 on."""

    X: sp.csr_matrix
    obs: pd.DataFrame
    var: pd.DataFrame
    joinids: np.ndarray

    @classmethod
    def make(cls, n_obs: int, n_vars: int = 12, *, X: sp.csr_matrix | None = None, density: float = 0.3) -> Cells:
        """Cells whose values encode their row and column, unless ``X`` is given; every third joinid is in use."""
        var = pd.DataFrame({"feature_id": [f"G{j}" for j in range(n_vars)], "length": np.arange(n_vars) * 100})
        X = addressed(n_obs, n_vars, density) if X is None else X
        return cls(X, labelled_obs(n_obs), var, np.arange(n_obs) * 3 + 2)

    @property
    def rows(self) -> dict[int, np.ndarray]:
        """The row of X of each cell, by its joinid."""
        return dict(zip(self.joinids.tolist(), self.X.toarray(), strict=True))

    def write_soma(self, path: Path, **options: Any) -> str:
        """Write an experiment of SOMA."""
        options = {"dtype": self.X.dtype, "extent": 8, **options}
        return write_experiment(path, self.X, self.obs, var=self.var, joinids=self.joinids, **options)

    def to_anndata(self, order: np.ndarray | None = None) -> anndata.AnnData:
        """Return the cells, in an order of their own, with their joinids in obs, as AnnData that users write."""
        order = np.arange(len(self.joinids)) if order is None else order
        obs = self.obs.assign(soma_joinid=self.joinids).iloc[order]
        names = [f"cell {joinid}" for joinid in self.joinids[order]]
        X = self.X[order]
        return anndata.AnnData(X, obs=obs.set_axis(names), var=self.var.set_index("feature_id"))


@contextmanager
def writing(zarr_format: int, **settings: Any) -> Iterator[None]:
    with warnings.catch_warnings(), anndata.settings.override(zarr_write_format=zarr_format, **settings):
        warnings.simplefilter("ignore")  # of zarr, about consolidated metadata, and of anndata, about its next version
        yield


def _soma(cells: Cells, folder: Path) -> dict[str, Any]:
    return {"experiment": cells.write_soma(folder / "cells.soma")}


def _zarr2(cells: Cells, folder: Path) -> dict[str, Any]:
    with writing(2):
        cells.to_anndata().write_zarr(folder / "cells.zarr")
    return {"experiment": folder / "cells.zarr"}


def _zarr3(cells: Cells, folder: Path) -> dict[str, Any]:
    """Sharded by anndata if it can, in another order than that of the joinids."""
    order = np.random.default_rng(1).permutation(len(cells.joinids))
    sharded = {"auto_shard_zarr_v3": True} if hasattr(anndata.settings, "auto_shard_zarr_v3") else {}
    with writing(3, **sharded):
        cells.to_anndata(order).write_zarr(folder / "cells.zarr")
    return {"experiment": folder / "cells.zarr"}


def _h5ad(cells: Cells, folder: Path) -> dict[str, Any]:
    with writing(2):
        cells.to_anndata().write_h5ad(folder / "cells.h5ad")
    return {"experiment": folder / "cells.h5ad"}


def _collection(cells: Cells, folder: Path) -> dict[str, Any]:
    """Two parts whose chunks have unequal sizes, as those of annbatch."""
    order = np.random.default_rng(2).permutation(len(cells.joinids))
    zarr.open_group(folder / "cells.zarr", mode="w", zarr_format=3, attributes=COLLECTION)
    n_first = len(order) * 2 // 3
    for k, part in enumerate((order[:n_first], order[n_first:])):
        path = folder / "cells.zarr" / f"dataset_{k}"
        with writing(3):
            cells.to_anndata(part).write_zarr(path)
        _shard(path / "X", chunk_size=7 + 4 * k, shard_chunks=5)
    return {"experiment": folder / "cells.zarr"}


def _shard(path: Path, *, chunk_size: int, shard_chunks: int) -> None:
    """Replace the arrays of a CSR matrix in a part by sharded ones, compressed as annbatch does."""
    root = path.parent / "zarr.json"
    metadata = json.loads(root.read_bytes())
    del metadata["consolidated_metadata"]  # it describes the arrays of before
    root.write_text(json.dumps(metadata))
    group = zarr.open_group(path, mode="r+", use_consolidated=False)
    for name in ("indptr", "indices", "data"):
        values = group[name][:]
        dtype = np.uint16 if name == "indices" else values.dtype
        group.create_array(
            name,
            data=values.astype(dtype),
            chunks=(chunk_size,),
            shards=(chunk_size * shard_chunks,),
            compressors=(zarr.codecs.BloscCodec(cname="lz4", clevel=3, typesize=np.dtype(dtype).itemsize),),
            overwrite=True,
        )


def _copy(cells: Cells, folder: Path) -> dict[str, Any]:
    dataset = ExperimentDataset(cells.write_soma(folder / "cells.soma"), seed=0)
    return {"experiment": dataset.write_copy(folder / "cells.zarr")}


def _local_copy(cells: Cells, folder: Path) -> dict[str, Any]:
    source = {"experiment": cells.write_soma(folder / "cells.soma"), "local_copy": folder / "copy"}
    for _ in ExperimentDataset(**source, seed=0, X_dtype="stored"):
        pass
    return source


KINDS: Mapping[str, Callable[[Cells, Path], dict[str, Any]]] = {
    "soma": _soma,
    "zarr2": _zarr2,
    "zarr3": _zarr3,
    "h5ad": _h5ad,
    "collection": _collection,
    "copy": _copy,
    "local copy": _local_copy,
}
"""For each kind, a function that writes cells to a folder, and returns the arguments of a dataset that read them."""

COPIES = ("copy", "local copy")
