"""What was selected: cells, genes, codes, and where X lies. Frozen, picklable, without an open handle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cellfeed._geometry import ArrayGeometry
from cellfeed._joinids import IntArray, JoinIds
from cellfeed.select.encoders import Encoder


@dataclass(frozen=True, eq=False)
class Selection:
    """The cells and genes of a query over one layer of one measurement.

    Attributes
    ----------
    experiment_uri, measurement_name, X_name
        What was asked.
    source
        Reads X and columns of obs and var, in any process: a ``cellfeed.sources.source.Source``, typed ``Any`` here
        because folders below ``sources/`` do not import it.
    joinids
        The selected cells, ascending.
    var_joinids
        int64, shape (n_vars,): the selected genes, ascending.
    encoders
        The fitted encoders, by name, in order.
    codes
        One array of shape (n_obs,) per encoder, of the smallest sufficient integer type. ``None`` stands
        for the joinids themselves.
    nnz
        shape (n_obs,), of the smallest sufficient integer type: stored values of each cell, where obs tells them
        (a Census does, in its column ``nnz``).
    raw_sum
        uint32 or float64, shape (n_obs,): what the counts of each cell add up to, where the layer is ``raw`` and obs
        tells it.
    raw_squares
        uint32 or float64, shape (n_obs,): the sum of the squared counts of each cell, where obs has their variance and
        the store is local. See :mod:`cellfeed.select.row_figures`.
    arrange
        Brings X into the columns that were asked for, where these are not the selected genes as they come.
    queries
        What was asked of obs and of var, as plain values.
    splits
        How the cells were split off, one after another, as plain values.
    all_genes
        Whether all genes of var are selected, whatever the number of columns of the array.
    """

    experiment_uri: str
    measurement_name: str
    X_name: str
    source: Any
    joinids: JoinIds
    var_joinids: IntArray
    encoders: Mapping[str, Encoder]
    codes: tuple[npt.NDArray[Any] | None, ...]
    nnz: npt.NDArray[Any] | None = None
    raw_sum: npt.NDArray[Any] | None = None
    raw_squares: npt.NDArray[Any] | None = None
    column_transform: Any = None
    queries: tuple[Any, Any] = (None, None)
    splits: tuple[Mapping[str, Any], ...] = ()
    all_genes: bool = False

    @property
    def geometry(self) -> ArrayGeometry:
        """Layout of the values of X in the store."""
        geometry: ArrayGeometry = self.source.geometry
        return geometry

    @property
    def is_remote(self) -> bool:
        """Whether X is on an object store."""
        return bool(self.source.is_remote)

    @property
    def n_obs(self) -> int:
        """Selected cells."""
        return len(self.joinids)

    @property
    def n_vars(self) -> int:
        """Selected genes."""
        return len(self.var_joinids)

    @property
    def label_names(self) -> list[str | None]:
        """The name of each column of a minibatch's obs; ``None`` for joinids, which are no labels."""
        names = iter(self.encoders)
        return [None if column is None else next(names) for column in self.codes]

    def take(self, positions: IntArray, split: Mapping[str, Any] | None = None) -> Selection:
        """Keep the cells at ascending positions; ``split`` says by which split."""
        codes = tuple(None if column is None else column[positions] for column in self.codes)
        figures: dict[str, Any] = {
            name: None if figure is None else figure[positions]
            for name, figure in (("nnz", self.nnz), ("raw_sum", self.raw_sum), ("raw_squares", self.raw_squares))
        }
        splits = self.splits if split is None else (*self.splits, split)
        joinids = self.joinids.take(positions)
        return replace(self, joinids=joinids, codes=codes, splits=splits, **figures)

    def take_vars(self, places: IntArray, column_transform: Any) -> Selection:
        """Keep the genes at ascending places, and arrange them."""
        all_genes = self.all_genes and len(places) == self.n_vars
        return replace(
            self, var_joinids=self.var_joinids[places], column_transform=column_transform, all_genes=all_genes
        )

    def obs_rows(self, positions: IntArray) -> IntArray:
        """Codes of the cells at ``positions``: int64, shape (len(positions), n_encoders)."""
        out = np.empty((len(positions), len(self.codes)), np.int64)
        for k, column in enumerate(self.codes):
            out[:, k] = self.joinids[positions] if column is None else column[positions]
        return out
