"""Rows from a copy, and from a local copy however much of it is written, are those of the source, to the bit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import tiledbsoma as soma
import torch

from cellfeed import ExperimentDataset
from cellfeed.sources.anndata.copies.layout import Layout
from tests.support.sources import Cells

CASES, SEEDS_PER_TEST = int(os.environ.get("CELLFEED_EXAMPLES", "200")), 4

VALUES: dict[str, Any] = {
    "small counts": (np.float32, [1, 2, 255]),
    "large counts": (np.float32, [1, 256, 65535]),
    "larger counts": (np.float32, [1, 65536, 2**24]),
    "fractions": (np.float32, [0.1, -0.0, -1.5, 1e-45, 3e38]),
    "double": (np.float64, [0.1, 1, 1e300, 5e-324, 2**24 + 1]),
    "counts in double": (np.float64, [1, 7, 300]),
    "uint8": (np.uint8, [1, 255]),
    "uint16": (np.uint16, [1, 255, 256, 65535]),
    "uint32": (np.uint32, [1, 256, 65536, 2**32 - 1]),
    "int8": (np.int8, [1, 127, -128]),
    "int16": (np.int16, [1, 300, -300]),
    "int32": (np.int32, [1, 300, 2**24 + 1, -(2**31)]),
    "counts in int32": (np.int32, [1, 300]),
    "int64": (np.int64, [1, 2**31, 2**53 + 1, -1]),
}
"""For each kind, the type of the layer, and values that decide how it can be stored."""


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows straddle chunks and shards, and a part that is not complete keeps the rows of its complete shards."""
    monkeypatch.setattr(Layout.__init__, "__defaults__", ("lz4", 16, 3))


class Case:
    """A random store, a random selection of it, and random parameters."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.chance = np.random.default_rng(seed)
        self.kind = list(VALUES)[seed % len(VALUES)]
        self.cells = self._cells()
        self.uri = self.cells.write_soma(
            folder / "cells.soma", extent=self._pick([4, 16]), capacity=self._pick([7, 64])
        )
        self.selection = {"obs_query": self._obs_query(), "var_query": self._var_query()}
        self.X_dtypes = ["stored"] if self.kind == "double" else ["stored", "float32"]

    def _pick(self, choices: list[Any]) -> Any:
        return choices[self.chance.integers(len(choices))]

    def _cells(self) -> Cells:
        dtype, special = VALUES[self.kind]
        n_obs, n_vars = self._pick([1, 17, 60]), self._pick([1, 5, 40])
        stored = self.chance.random((n_obs, n_vars)) < self._pick([0.0, 0.1, 0.7])
        stored[self.chance.random(n_obs) < 0.2] = False
        rows, columns = np.nonzero(stored)
        values = self.chance.choice(np.array([0, *special], dtype), len(rows))  # zeros may be stored, too
        return Cells.make(n_obs, n_vars, X=sp.csr_matrix((values, (rows, columns)), shape=stored.shape))

    def _obs_query(self) -> Any:
        joinids = self.cells.joinids
        some = np.sort(self.chance.choice(joinids, self.chance.integers(1, len(joinids) + 1), replace=False))
        coords = soma.AxisQuery(coords=(some,))
        return self._pick([None, "flag == True", {"label": ["type 0"]}, coords, soma.AxisQuery(coords=(slice(2, 90),))])

    def _var_query(self) -> Any:
        n_vars = self.cells.X.shape[1]
        some = sorted(self.chance.choice(n_vars, self.chance.integers(1, n_vars + 1), replace=False).tolist())
        return self._pick([None, None, soma.AxisQuery(coords=(some,)), "length <= 200"])

    def dataset(self, experiment: Any = None, **parameters: Any) -> ExperimentDataset:
        """A dataset of the selection, with random parameters that must not change any row."""
        return ExperimentDataset(
            experiment or self.uri,
            **self.selection,
            **{
                "obs_column_names": ["soma_joinid", "label"],
                "X_dtype": self._pick(self.X_dtypes),
                "batch_size": int(self.chance.integers(1, 30)),
                "return_sparse_X": self._pick([True, False]),
                "soma_chunk_size": self._pick([None, 1, 3, 64]),
                "use_eager_fetch": self._pick([True, False]),
                "memory_budget": self._pick(["64 MiB", "1 GiB"]),
                "seed": int(self.chance.integers(9)),
                **parameters,
            },
        )


def to_scipy(X: torch.Tensor, n_obs: int) -> sp.csr_matrix:
    if not X.is_sparse_csr:
        return sp.csr_matrix(X.numpy().reshape(n_obs, -1))
    return sp.csr_matrix((X.values().numpy(), X.col_indices().numpy(), X.crow_indices().numpy()), X.shape)


def rows_of(datasets: list[ExperimentDataset]) -> dict[int, tuple[bytes, ...]]:
    """The bits of each row and of its label, by joinid; each cell once."""
    found: dict[int, tuple[bytes, ...]] = {}
    for dataset in datasets:
        for X, obs in dataset:
            matrix = to_scipy(X, len(obs))
            bounds, columns, values = matrix.indptr, matrix.indices, matrix.data
            labels = dataset.obs_encoders["label"].inverse_transform(obs[:, 1])
            for k, joinid in enumerate(obs[:, 0].tolist()):
                own = slice(int(bounds[k]), int(bounds[k + 1]))
                kept = np.flatnonzero(values[own] != 0)  # a dense X does not say which zeros are stored
                assert joinid not in found
                row = columns[own][kept].astype(np.int64).tobytes(), values[own][kept].tobytes()
                found[joinid] = (*row, str(values.dtype).encode(), str(labels[k]).encode())
    return found


def ranks(case: Case, experiment: Any = None, **parameters: Any) -> list[ExperimentDataset]:
    """One dataset, or one for each of two ranks."""
    if case._pick([True, False]):
        return [case.dataset(experiment, **parameters)]
    seed = int(case.chance.integers(9))
    shared = {"world_size": 2, "rank_remainder": "uneven", "seed": seed, "soma_chunk_size": 3, "batch_size": 5}
    shared |= {"X_dtype": case._pick(case.X_dtypes), **parameters}
    return [case.dataset(experiment, rank=rank, **shared) for rank in range(2)]


def take(dataset: ExperimentDataset, n: int) -> None:
    iterator = iter(dataset)
    for _ in range(n):
        next(iterator, None)
    iterator.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("first", range(0, CASES, SEEDS_PER_TEST))
def test_rows_are_those_of_the_source(tmp_path, first):
    for seed in range(first, min(first + SEEDS_PER_TEST, CASES)):
        folder = tmp_path / str(seed)
        folder.mkdir()
        try:
            check(Case(seed, folder), folder)
        except Exception as error:
            error.add_note(f"seed={seed}")
            raise


def check(case: Case, folder: Path) -> None:
    if 0 in case.dataset(allow_empty=True).shape:
        return
    expected = {
        X_dtype: rows_of([case.dataset(X_dtype=X_dtype, shuffle=False, soma_chunk_size=None)])
        for X_dtype in case.X_dtypes
    }

    def assert_equal(datasets: list[ExperimentDataset]) -> None:
        assert rows_of(datasets) == expected[datasets[0]._engine.settings.X_dtype]

    # A copy of the selection, and a selection of a copy of all cells
    compression = case._pick(["lz4", "zstd"])
    path = case.dataset().write_copy(folder / "copy.zarr", compression=compression)
    case.selection, selection = {}, case.selection
    assert_equal(ranks(case, path))
    all_cells = case.dataset().write_copy(folder / "all.zarr")
    case.selection = selection
    assert_equal(ranks(case, all_cells))
    # A local copy in every state
    exact = {"X_dtype": "stored"} if case.kind == "counts in double" else {}
    copy = folder / "local"
    assert_equal(ranks(case, local_copy=copy, **exact))  # nothing is written before
    assert medium_of(case.dataset(local_copy=copy)) == "copy"
    for _ in range(2):
        assert_equal(ranks(case, local_copy=copy))  # complete, and opened again
    interrupted = folder / "interrupted"
    for _ in range(3):
        take(case.dataset(local_copy=interrupted, **exact), int(case.chance.integers(1, 4)))
        if len(expected["stored"]) >= 10:
            part = case.dataset(local_copy=interrupted, **exact).random_split([0.5, 0.5], seed=1)[0]
            take(part, int(case.chance.integers(1, 99)))
    for _ in range(3):
        dataset = case.dataset(local_copy=interrupted, **exact)
        assert_equal([dataset])
        assert_equal([dataset])
    assert medium_of(dataset) == "copy"


def medium_of(dataset: ExperimentDataset) -> str:
    """Where the next epoch reads."""
    return dataset._engine.epochs.next_medium(0, 1).name
