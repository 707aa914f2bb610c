"""Small stores with the parts of a Census that readers open: its experiments, and which genes were measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.sparse as sp
import tiledbsoma as soma

from tests.support.stores import addressed, write_experiment


def write_tongues(path: Path) -> tuple[str, pd.DataFrame]:
    """Write 300 human cells of tongues and lungs, which ``cellxgene_census.open_soma`` opens; return URI and obs."""
    n_obs = 300
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {
            "tissue_general": pd.Categorical(rng.choice(["tongue", "lung"], n_obs)),
            "is_primary_data": rng.random(n_obs) < 0.8,
            "cell_type": pd.Categorical(rng.choice(["basal cell", "fibroblast", "T cell"], n_obs)),
            "dataset_id": pd.Categorical([f"data set {k}" for k in np.arange(n_obs) // 100]),
        }
    )
    with soma.Collection.create(str(path)) as census:
        data_uri = census.add_new_collection("census_data").uri
    write_experiment(f"{data_uri}/homo_sapiens", addressed(n_obs, 50), obs, extent=64, capacity=500)
    with soma.Collection.open(data_uri, "w") as data:
        data.set("homo_sapiens", soma.open(f"{data_uri}/homo_sapiens"), use_relative_uri=True)
    return str(path), obs


def write_census(
    root: Path, X: sp.csr_matrix, obs: pd.DataFrame, presence: pd.DataFrame, *, n_others: int = 3, **options: Any
) -> str:
    """Write an experiment where a Census has it, its presence matrix, and the table of data sets; return its URI.

    Parameters
    ----------
    presence
        bool: a row per ``dataset_id``, and a column per gene, by its joinid.
    n_others
        Data sets of other organisms, whose joinids come between those of ``presence``.
    """
    (root / "census_data").mkdir(parents=True, exist_ok=True)
    uri = write_experiment(root / "census_data" / "homo_sapiens", X, obs, **options)
    names = [*presence.index, *(f"other {k}" for k in range(n_others))]
    joinid = np.random.default_rng(0).permutation(len(names))
    with soma.Collection.create(str(root / "census_info")):
        pass
    datasets = pa.table({"soma_joinid": np.arange(len(names)), "dataset_id": [names[k] for k in np.argsort(joinid)]})
    with soma.DataFrame.create(
        str(root / "census_info" / "datasets"),
        schema=datasets.schema,
        index_column_names=["soma_joinid"],
        domain=[(0, len(names) - 1)],
    ) as table:
        table.write(datasets)
    rows, columns = np.nonzero(presence.to_numpy())
    with soma.Experiment.open(uri, "w") as experiment:
        array = experiment.ms["RNA"].add_new_sparse_ndarray(
            "feature_dataset_presence_matrix", type=pa.bool_(), shape=(len(names), int(presence.columns.max()) + 1)
        )
        array.write(
            pa.table(
                {
                    "soma_dim_0": joinid[rows],
                    "soma_dim_1": presence.columns.to_numpy(np.int64)[columns],
                    "soma_data": np.ones(len(rows), bool),
                }
            )
        )
    return uri
