"""Small SOMA stores for tests, with all parameters of the layout."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.sparse as sp
import tiledbsoma as soma
import torch

from cellfeed.sources.soma import tiledb_private


def addressed(n_obs: int, n_vars: int, density: float = 0.3, seed: int = 0) -> sp.csr_matrix:
    """A matrix whose values encode their row and column, so that a misplaced value is recognised."""
    rng = np.random.default_rng(seed)
    rows, columns = np.nonzero(rng.random((n_obs, n_vars)) < density)
    values = (rows * n_vars + columns + 1).astype(np.float32)
    return sp.csr_matrix((values, (rows, columns)), shape=(n_obs, n_vars))


def write_experiment(
    path: Path | str,
    X: sp.csr_matrix,
    obs: pd.DataFrame | None = None,
    *,
    var: pd.DataFrame | None = None,
    joinids: np.ndarray | None = None,
    var_joinids: np.ndarray | None = None,
    dtype: Any = np.float32,
    extent: int = 8,
    column_extent: int = 16,
    capacity: int = 32,
    allows_duplicates: bool = True,
    n_fragments: int = 1,
    layers: tuple[str, ...] = ("raw",),
    unfiltered: tuple[str, ...] = (),
    columns: int | None = None,
    create: dict[str, Any] | None = None,
    context: Any = None,
) -> str:
    """Write one experiment; row ``i`` of ``X`` and ``obs`` is the cell ``joinids[i]``.

    The array has ``columns`` columns, by default one per row of var. Fields of X in ``unfiltered`` are stored without
    filters: a byte of such a file is a byte of one value. ``create`` replaces the layout of X that the other arguments
    describe; it has the format of tiledbsoma, which chooses the layout itself if it is empty.
    """
    uri = str(path)
    n_obs, n_vars = X.shape
    joinids = np.arange(n_obs) if joinids is None else np.asarray(joinids)
    var_joinids = np.arange(n_vars) if var_joinids is None else np.asarray(var_joinids)
    shape = (int(joinids.max(initial=0)) + 1, columns or int(var_joinids.max(initial=0)) + 1)
    obs = pd.DataFrame(index=range(n_obs)) if obs is None else obs
    var = pd.DataFrame({"feature_name": [f"G{j}" for j in range(n_vars)]}) if var is None else var
    layout = {
        "capacity": capacity,
        "dims": {"soma_dim_0": {"tile": extent}, "soma_dim_1": {"tile": column_extent}},
        "allows_duplicates": allows_duplicates,
        "attrs": {"soma_data": {"filters": []}} if "soma_data" in unfiltered else {},
    }
    for name in set(unfiltered) & set(layout["dims"]):
        layout["dims"][name]["filters"] = []
    create = layout if create is None else create
    coo = X.tocoo()
    parts = np.array_split(np.arange(coo.nnz), n_fragments)
    with soma.Experiment.create(uri, context=context) as experiment:
        rna = experiment.add_new_collection("ms").add_new_collection("RNA", soma.Measurement)
        arrays = rna.add_new_collection("X", soma.Collection)
        for layer in layers:
            array = arrays.add_new_sparse_ndarray(
                layer,
                type=pa.from_numpy_dtype(np.dtype(dtype)),
                shape=shape,
                platform_config={"tiledb": {"create": create}},
            )
            array_uri = array.uri
            array.close()
            for part in parts:
                if len(part):
                    with soma.SparseNDArray.open(array_uri, "w", context=context) as target:
                        target.write(
                            pa.table(
                                {
                                    "soma_dim_0": joinids[coo.row[part]].astype(np.int64),
                                    "soma_dim_1": var_joinids[coo.col[part]].astype(np.int64),
                                    "soma_data": coo.data[part].astype(dtype),
                                }
                            )
                        )
        _write_frame(experiment, "obs", obs, joinids, context)
        _write_frame(rna, "var", var, var_joinids, context)
    return uri


def _write_frame(parent: Any, name: str, frame: pd.DataFrame, joinids: np.ndarray, context: Any) -> None:
    frame = frame.reset_index(drop=True)
    frame.insert(0, "soma_joinid", joinids.astype(np.int64))
    table = pa.Table.from_pandas(frame, preserve_index=False)
    created = parent.add_new_dataframe(
        name,
        schema=table.schema,
        index_column_names=["soma_joinid"],
        domain=[(0, int(joinids.max(initial=0)))],
    )
    uri = created.uri
    created.close()
    if len(frame):
        with soma.DataFrame.open(uri, "w", context=context) as target:
            target.write(table)


def consolidate(array_uri: str, *, vacuum: bool) -> None:
    """Make one fragment of all fragments of an array; without ``vacuum``, those it replaces stay where they are.

    tiledbsoma has no public call for it; TileDB's C interface does.
    """
    library = ctypes.CDLL(tiledb_private.library_file())
    config, error, context = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    uri = array_uri.removeprefix("file://").encode()
    calls = [
        lambda: library.tiledb_config_alloc(ctypes.byref(config), ctypes.byref(error)),
        lambda: library.tiledb_ctx_alloc(config, ctypes.byref(context)),
        lambda: library.tiledb_array_consolidate(context, uri, config),
        lambda: library.tiledb_array_vacuum(context, uri, config) if vacuum else 0,
    ]
    assert [call() for call in calls] == [0] * len(calls)
    library.tiledb_ctx_free(ctypes.byref(context))
    library.tiledb_config_free(ctypes.byref(config))


def labelled_obs(n_obs: int, n_labels: int = 3) -> pd.DataFrame:
    """obs with one column of each kind."""
    i = np.arange(n_obs)
    return pd.DataFrame(
        {
            "label": pd.Categorical([f"type {k}" for k in i % n_labels]),
            "text": [f"t{k}" for k in i // 2],
            "number": i * 10,
            "fraction": i / 4,
            "flag": i % 2 == 0,
            "donor": pd.Categorical([f"donor {k}" for k in i * 5 // max(n_obs, 1)]),
        }
    )


def collect(dataset: Any, n_vars: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Collect an epoch: X as one dense array, obs, and the sizes of the minibatches."""
    Xs, rows, sizes = [], [], []
    for minibatch in dataset:
        X, obs = minibatch[0], minibatch[1]
        X = X.to_dense() if X.is_sparse_csr else X
        Xs.append(X.numpy().reshape(-1, n_vars).copy())
        rows.append(obs.numpy().reshape(len(Xs[-1]), -1))
        sizes.append(len(Xs[-1]))
    if not Xs:
        return np.empty((0, n_vars), np.float32), np.empty((0, 0), np.int64), []
    return np.concatenate(Xs), np.concatenate(rows), sizes


def assert_canonical(sparse: torch.Tensor) -> None:
    """Check that a CSR tensor is valid, and that its columns ascend in each row; PyTorch raises an error otherwise."""
    torch.sparse_csr_tensor(
        sparse.crow_indices(), sparse.col_indices(), sparse.values(), size=sparse.shape, check_invariants=True
    )
