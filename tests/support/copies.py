"""Copies of tiny stores: their layout, what they must hold, and what they hold."""

import json
import zlib
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from cellfeed.sources.anndata.copies.layout import Layout

SMALL = ("lz4", 16, 3)
"""Compression, values per chunk and chunks per shard of copies of tiny stores, so that they have several shards."""


def make_layout_small(set_attribute=setattr, layout=SMALL):
    """Give copies of this process a small layout."""
    set_attribute(Layout.__init__, "__defaults__", layout)


def parts_of(path):
    """The complete parts of a copy."""
    path = Path(path)
    return [path] if (path / "X").exists() else sorted(path.glob("dataset_*"))


def read_copy(path):
    """The cells of a copy in the order of their joinids, through anndata."""
    parts = [ad.read_zarr(part) for part in parts_of(path)]
    obs = pd.concat([part.obs.astype(object) for part in parts])
    order = np.argsort(obs["soma_joinid"].to_numpy(np.int64))
    X = sp.vstack([part.X.astype(np.float32) for part in parts], format="csr")[order]
    for part in parts[1:]:
        pd.testing.assert_frame_equal(part.var, parts[0].var)
    return X, obs.iloc[order], parts[0].var


def assert_same_copy(path, other):
    """Two copies have the same cells, values, obs and var, in whatever order."""
    (X, obs, var), (other_X, other_obs, other_var) = read_copy(path), read_copy(other)
    assert X.shape == other_X.shape
    assert not (other_X != X).nnz
    pd.testing.assert_frame_equal(obs, other_obs)
    pd.testing.assert_frame_equal(var, other_var)


def describe(minibatch):
    """The joinid and a checksum of the values of each cell of a minibatch, whose first column of obs is the joinid."""
    X = minibatch.X.to_dense() if minibatch.X.is_sparse_csr else minibatch.X
    return [
        [int(joinid), zlib.crc32(row.tobytes())] for joinid, row in zip(minibatch.obs[:, 0], X.numpy(), strict=True)
    ]


def described(X):
    """What :func:`describe` returns of all cells of a matrix, in their order."""
    return [[k, zlib.crc32(row.tobytes())] for k, row in enumerate(X.toarray())]


def epochs_of(history, n_epochs):
    """The described cells of each epoch in the history of a program, in the order of their joinids."""
    return [sorted(cell for epoch, cells in history if epoch == k for cell in cells) for k in range(n_epochs)]


def history_of(folder):
    """The history that a program has saved."""
    saved = Path(folder) / "state.json"
    return json.loads(saved.read_text())["history"] if saved.exists() else []
