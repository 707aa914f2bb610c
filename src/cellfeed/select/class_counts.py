"""The number of cells of each label, and weights of labels for a loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cellfeed.select.encoders import Encoder
from cellfeed.select.labels import read_labels
from cellfeed.select.selection import Selection


def count_classes(selection: Selection, column: str) -> pd.Series[int]:
    """Count the cells of each label; see :meth:`cellfeed.ExperimentDataset.class_counts`."""
    if column in selection.encoders:
        labels, codes = _classes(selection.encoders[column], selection.codes[column])
    else:
        vocabulary, codes = read_labels(selection, column)
        labels = vocabulary.values
    of_classes = codes[(codes >= 0) & (codes < len(labels))]  # other codes stand for cells without a label
    counts = np.bincount(of_classes, minlength=len(labels))
    return pd.Series(counts, index=pd.Index(labels, name=column), name="n_obs")


def _classes(encoder: Encoder, codes: Any) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the labels by code, and the codes; an encoder of users has labels up to the largest code."""
    classes = getattr(encoder, "classes_", None)
    if classes is None:
        classes = encoder.inverse_transform(np.arange(codes.max(initial=-1) + 1))
    return np.asarray(classes), codes


def balanced_weights(counts: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float32]:
    """Return the weight of each label in a loss, so that all labels with cells have the same total weight.

    The formula is that of ``class_weight="balanced"`` in scikit-learn, after King and Zeng (2001): a label has the
    weight ``n / (k * n_label)``, where ``n`` is the number of cells and ``k`` the number of labels with cells. The mean
    weight of a cell is 1. A label without cells has the weight 0.

    Examples
    --------
    >>> balanced_weights(np.array([6, 2, 0])).tolist()
    [0.6666666865348816, 2.0, 0.0]
    """
    n_labels = np.count_nonzero(counts)
    weights = np.zeros(len(counts), np.float32)
    np.divide(counts.sum(), n_labels * counts, out=weights, where=counts > 0, casting="same_kind")
    return weights
