"""Reads the presence matrix of a Census: which genes were measured in each of its data sets.

The schema of the Census has the definition: a value is true if at least one cell of the data set has a count above
zero. Rows are joinids of the table ``census_info/datasets``, which is outside the experiment, and columns are joinids
of var. https://github.com/chanzuckerberg/cellxgene-census/blob/main/docs/cellxgene_census_schema.md
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cellfeed._checks import abbreviate
from cellfeed._joinids import JOINID, IntArray
from cellfeed.errors import SelectionError
from cellfeed.select.find_measured import DATASET, GIVE, ReadTable
from cellfeed.select.measured import Table
from cellfeed.sources.redact import public_uri, reraise_as, secrets_of
from cellfeed.sources.retry import Retries
from cellfeed.sources.soma.experiment import config_of, reading

PRESENCE = "feature_dataset_presence_matrix"
"""The array of a measurement."""

DATASETS = "census_info/datasets"
"""The table of data sets, from the root of a Census, which holds ``census_data/homo_sapiens``."""


def presence_reader(experiment: Any, measurement_name: str, retries: Retries) -> ReadTable:
    """Return a function that reads the presence matrix of an open experiment.

    Raises
    ------
    SelectionError
        If the measurement has no presence matrix, or the table of data sets is not found or lacks one of them.
    """

    def read(labels: list[Any], var_joinids: IntArray) -> Table:
        with reading(experiment):
            measurement = experiment.ms[measurement_name]
            if not retries.call(lambda: PRESENCE in measurement):
                raise SelectionError(
                    f"measured=True: measurement {measurement_name!r} has no {PRESENCE!r}, the table of a Census; "
                    f"{GIVE}"
                )
            rows = _rows_of(experiment, labels, retries)
            return retries.call(lambda: _read_matrix(measurement[PRESENCE], rows, var_joinids))

    return read


def _rows_of(experiment: Any, labels: list[Any], retries: Retries) -> IntArray:
    """Return the joinid of each data set in the table of the Census that contains the experiment."""
    import tiledbsoma as soma

    root = experiment.uri.rstrip("/").rsplit("/", 2)[0]
    uri, at = f"{root}/{DATASETS}", experiment.tiledb_timestamp_ms
    shown = public_uri(uri)
    what = f"measured=True: the table of data sets {shown!r} cannot be read"

    def read() -> dict[str, list[Any]]:
        with soma.DataFrame.open(uri, context=experiment.context, tiledb_timestamp=at) as datasets:
            return datasets.read(column_names=[JOINID, DATASET]).concat().to_pydict()  # type: ignore[no-any-return]

    with reraise_as(SelectionError, what, secrets_of(uri, config_of(experiment.context)), f"; {GIVE}"):
        table = retries.call(read)
    joinid_of = dict(zip(table[DATASET], table[JOINID], strict=True))
    if absent := [label for label in labels if label not in joinid_of]:
        raise SelectionError(
            f"measured=True: {shown!r} has no row for {len(absent)} of the {len(labels)} values of {DATASET!r} in obs: "
            f"{abbreviate(absent)}; {GIVE}"
        )
    return np.array([joinid_of[label] for label in labels], np.int64)


def _read_matrix(array: Any, rows: IntArray, columns: IntArray) -> Table:
    """Read some rows and ascending columns of an open array: bool, shape (n_rows, n_columns)."""
    found = np.zeros((len(rows), len(columns)), bool)
    if not found.size:
        return found
    order = np.argsort(rows)
    ascending = rows[order]
    for page in array.read((ascending, slice(int(columns[0]), int(columns[-1])))).tables():
        row, column, value = (page.column(name).to_numpy() for name in ("soma_dim_0", "soma_dim_1", "soma_data"))
        place = np.searchsorted(columns, column)
        wanted = columns[place] == column
        found[order[np.searchsorted(ascending, row[wanted])], place[wanted]] = value[wanted]
    return found
