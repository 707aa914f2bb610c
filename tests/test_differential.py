"""Random configurations against tiledbsoma's own query: the same cells, to the bit."""

from __future__ import annotations

import os
import warnings
from collections import Counter

import numpy as np
import pytest
import tiledbsoma as soma
from hypothesis import given, settings
from hypothesis import strategies as st

from cellfeed import ExperimentDataset
from tests.support.stores import addressed, collect, labelled_obs, write_experiment


def rows_of(joinids, X, codes):
    """A multiset of (joinid, bits of the row, codes)."""
    return Counter((int(j), X[i].tobytes(), codes[i].tobytes()) for i, j in enumerate(joinids))


@st.composite
def stores(draw, folder):
    """Draw a store of one of a few layouts; each is written once."""
    spec = (
        draw(st.sampled_from([1, 2, 17, 64, 150])),  # cells
        draw(st.sampled_from([1, 5, 40])),  # genes
        draw(st.sampled_from([0.0, 0.1, 0.7])),  # density
        draw(st.sampled_from([1, 7])),  # distance between joinids
        draw(st.sampled_from([(4, 8, 16), (16, 64, 100), (64, 4, 7)])),  # extents and capacity
        draw(st.sampled_from([True, False])),  # duplicates allowed
        draw(st.sampled_from([np.float32, np.int32])),
    )
    n_obs, n_vars, density, step, (extent, column_extent, capacity), duplicates, dtype = spec
    path = folder / ("-".join(map(str, spec)).replace("<class 'numpy.", "").replace("'>", ""))
    if not path.exists():
        write_experiment(
            path,
            addressed(n_obs, n_vars, density, seed=n_obs),
            labelled_obs(n_obs),
            joinids=np.arange(n_obs) * step + step,
            var_joinids=np.arange(n_vars) * step,
            dtype=dtype,
            extent=extent,
            column_extent=column_extent,
            capacity=capacity,
            allows_duplicates=duplicates,
        )
    return str(path), n_obs, n_vars, step


def subset(draw, n, step, offset):
    """No query, a value filter, a range, or scattered joinids of one axis."""
    kind = draw(st.sampled_from(["all", "filter", "range", "scattered"]))
    if kind == "filter" and offset:
        return soma.AxisQuery(value_filter=draw(st.sampled_from(["label == 'type 1'", "number > 50 and flag == True"])))
    if kind == "range":
        low = draw(st.integers(0, n - 1))
        return soma.AxisQuery(coords=(slice(low * step + offset, (n - 1) * step + offset),))
    if kind == "scattered":
        picks = draw(st.lists(st.integers(0, n - 1), min_size=1, unique=True))
        return soma.AxisQuery(coords=(sorted(p * step + offset for p in picks),))
    return None


@pytest.mark.slow
def test_any_configuration_gives_what_the_query_gives(tmp_path_factory, reading_path):
    """Over rows, genes, gaps, queries, chunks, budgets, batch sizes, seeds and splits; both ways of reading."""
    folder = tmp_path_factory.mktemp("differential")

    @settings(max_examples=int(os.environ.get("CELLFEED_EXAMPLES", "80")))
    @given(data=st.data())
    def check(data):
        draw = data.draw
        uri, n_obs, n_vars, step = draw(stores(folder))
        obs_query, var_query = subset(draw, n_obs, step, step), subset(draw, n_vars, step, 0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # selections of nothing are drawn, too
            with soma.open(uri) as experiment:
                query = experiment.axis_query("RNA", obs_query=obs_query, var_query=var_query)
                adata = query.to_anndata("raw", column_names={"obs": ["soma_joinid", "label", "number"]})
            dataset = ExperimentDataset(
                uri,
                obs_query=obs_query,
                var_query=var_query,
                obs_column_names=["soma_joinid", "label", "number"],
                batch_size=draw(st.integers(1, 40)),
                shuffle=draw(st.booleans()),
                seed=draw(st.integers(0, 9)),
                return_sparse_X=draw(st.booleans()),
                soma_chunk_size=draw(st.sampled_from([None, 1, 3, 64])),
                shuffle_chunk_count=draw(st.sampled_from([None, 1, 4])),
                memory_budget=draw(st.sampled_from(["40 MiB", "1 GiB"])),
                use_eager_fetch=draw(st.booleans()),
                allow_empty=True,
            )
            parts = [dataset]
            if len(dataset.obs_joinids) >= 10 and draw(st.booleans()):  # no part is empty
                parts = dataset.random_split([0.5, 0.3, 0.2], seed=draw(st.integers(0, 9)))
        got: Counter = Counter()
        for part in parts:
            X, obs, _ = collect(part, adata.n_vars)
            if len(obs):
                got += rows_of(obs[:, 0], X, decode(dataset, obs))
        X = adata.X.toarray().astype(np.float32)
        expected = np.array(list(zip(adata.obs["label"], adata.obs["number"].astype(str), strict=True)), dtype="U10")
        assert got == rows_of(adata.obs["soma_joinid"], X, expected.reshape(-1, 2))

    check()


def decode(dataset, obs):
    """Return labels instead of codes, which differ between encoders."""
    names = ["label", "number"]
    return np.stack(
        [dataset.obs_encoders[name].inverse_transform(obs[:, k + 1]).astype(str) for k, name in enumerate(names)],
        axis=1,
    ).astype("U10")
