"""Small stores with the parts of a Census that say which genes were measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.sparse as sp
import tiledbsoma as soma

from tests.support.stores import write_experiment


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
