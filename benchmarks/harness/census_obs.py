"""An obs table with the columns and types of the CZ CELLxGENE Census (schema 2.1; its builder's ``globals.py``)."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd
import pyarrow as pa

TERMS = {
    "assay": ("EFO", ("10x 3' v2", "10x 3' v3", "10x 5' v1", "Smart-seq2")),
    "development_stage": ("HsapDv", ("fetal stage", "child stage", "adult stage", "80 year-old stage")),
    "disease": ("MONDO", ("normal", "COVID-19", "breast carcinoma")),
    "self_reported_ethnicity": ("HANCESTRO", ("European", "Asian", "unknown")),
    "sex": ("PATO", ("female", "male", "unknown")),
    "tissue_general": ("UBERON", ("blood", "brain", "lung", "tongue", "heart", "kidney")),
}
"""Columns with a column of ontology terms beside them: the ontology and the labels."""

N_CELL_TYPES = 60
TYPES_PER_DATASET = 8
DONORS_PER_DATASET = 4


def obs_table(rng: np.random.Generator, dataset: np.ndarray, n_vars: int, sums: dict[str, np.ndarray]) -> pa.Table:
    """One row per cell.

    Parameters
    ----------
    dataset
        int64, shape (n_obs,): the data set of each cell.
    sums
        Of the stored values of each cell: ``nnz``, ``raw_sum`` and ``raw_squares``.
    """
    n, n_datasets = len(dataset), int(dataset.max(initial=0)) + 1
    donor = DONORS_PER_DATASET * dataset + rng.integers(0, DONORS_PER_DATASET, n)
    own_types = rng.integers(0, N_CELL_TYPES, (n_datasets, TYPES_PER_DATASET))
    cell_type = own_types[dataset, rng.integers(0, TYPES_PER_DATASET, n)]
    stems = [hashlib.md5(b"%d" % d).hexdigest() for d in range(n_datasets)]
    donors = [f"donor-{i:03d}" for i in range(DONORS_PER_DATASET * n_datasets)]
    mean = sums["raw_sum"] / np.maximum(sums["nnz"], 1)
    columns: dict[str, object] = {
        "soma_joinid": np.arange(n),
        "dataset_id": _category([f"{s[:8]}-{s[8:12]}-{s[12:16]}-{s[16:20]}-{s[20:]}" for s in stems], dataset),
        **_with_term("assay", dataset),
        "cell_type": _category([f"cell type {i}" for i in range(N_CELL_TYPES)], cell_type),
        "cell_type_ontology_term_id": _category([f"CL:{i:07d}" for i in range(N_CELL_TYPES)], cell_type),
        **_with_term("development_stage", donor),
        **_with_term("disease", donor // 2),
        "donor_id": _category(donors, donor),
        "is_primary_data": rng.random(n) < 0.8,
        "observation_joinid": _joinid_text(rng, n),
        **_with_term("self_reported_ethnicity", donor // 3),
        **_with_term("sex", donor),
        "suspension_type": _category(["cell", "nucleus"], dataset % 2),
        **_with_term("tissue_general", dataset),
        "tissue_type": _category(["tissue", "organoid"], dataset % 7 // 6),
        "raw_sum": sums["raw_sum"],
        "nnz": sums["nnz"],
        "raw_mean_nnz": mean,
        "raw_variance_nnz": _variance(sums),
        "n_measured_vars": np.full(n, n_vars, np.int64),
    }
    for suffix in ("", "_ontology_term_id"):
        columns[f"tissue{suffix}"] = columns[f"tissue_general{suffix}"]
    return pa.Table.from_pandas(pd.DataFrame(columns), preserve_index=False)


def _variance(sums: dict[str, np.ndarray]) -> np.ndarray:
    """The variance of the stored values of each cell, with ``ddof=1`` as in a Census."""
    squares_apart = sums["raw_squares"] - sums["raw_sum"] ** 2 / np.maximum(sums["nnz"], 1)
    return np.where(sums["nnz"] > 1, squares_apart / np.maximum(sums["nnz"] - 1, 1), 0)


def _category(labels: list[str], codes: np.ndarray) -> pd.Categorical:
    return pd.Categorical.from_codes(codes, labels)


def _with_term(name: str, kind: np.ndarray) -> dict[str, pd.Categorical]:
    """A column and that of its terms; cells of one kind share a label."""
    ontology, labels = TERMS[name]
    codes = kind % len(labels)
    terms = [f"{ontology}:{i:07d}" for i in range(len(labels))]
    return {name: _category(list(labels), codes), f"{name}_ontology_term_id": _category(terms, codes)}


def _joinid_text(rng: np.random.Generator, n: int) -> list[str]:
    """Ten random characters a cell, all different for all practical purposes."""
    alphabet = np.frombuffer(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_-", np.uint8)
    text = alphabet[rng.integers(0, len(alphabet), (n, 10))]
    return text.view("S10").ravel().astype(str).tolist() if n else []
