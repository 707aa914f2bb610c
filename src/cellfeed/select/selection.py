"""The selection: cells, genes, codes of labels, and the source of X. Frozen, picklable, without open handles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cellfeed._geometry import ArrayGeometry
from cellfeed._joinids import IntArray, JoinIds, find_in
from cellfeed.select.content import NOTHING_MORE, Content
from cellfeed.select.encoders import Encoder
from cellfeed.select.measured import Measured


@dataclass(frozen=True, eq=False)
class FurtherMatrix:
    """A matrix beside X over the same cells: a layer, or the X of a further measurement.

    Attributes
    ----------
    kind, name
        The dict of a minibatch that has it, and its key there.
    measurement_name, X_name
        Where it is in the store.
    source
        Reads it; that of X itself for a layer that is X, which is not read twice.
    var_joinids
        int64, shape (n_vars,): the genes of a measurement, ascending; ``None`` for a layer, which has those of X.
    """

    kind: Literal["layers", "measurements"]
    name: str
    measurement_name: str
    X_name: str
    source: Any
    var_joinids: IntArray | None = None


@dataclass(frozen=True, eq=False)
class Selection:
    """The cells and genes of a query over one layer of one measurement.

    Attributes
    ----------
    experiment_uri, measurement_name, X_name
        Arguments of the dataset.
    source
        Reads X and columns of obs and var, in any process: a ``cellfeed.sources.source.Source``, typed ``Any`` here
        because folders below ``sources/`` do not import it.
    joinids
        The selected cells, ascending: rows of X.
    var_joinids
        int64, shape (n_vars,): the selected genes, ascending.
    encoders
        The fitted encoders by name, in the order of the columns of obs.
    codes
        The columns of a minibatch's obs by name, in order. A column of an encoder has shape (n_obs,) and the smallest
        sufficient integer type; the column ``"soma_joinid"`` without an encoder is :attr:`joinid_column`.
    soma_joinids
        int64, shape (n_obs,): the ``soma_joinid`` of each cell if it is not the row of X, as in a copy; else ``None``.
    nnz
        Shape (n_obs,), of the smallest sufficient integer type: nnz of each cell, if obs has a column ``nnz``, as in a
        Census.
    raw_sum
        uint32 or float64, shape (n_obs,): the sum of the counts of each cell, if the layer is ``raw`` and obs has a
        column ``raw_sum``.
    raw_squares
        uint32 or float64, shape (n_obs,): the sum of the squared counts of each cell, if obs has their variance and
        the store is local. See :mod:`cellfeed.select.row_figures`.
    content
        What minibatches have beside X and obs.
    obs_values
        float32, shape (n_obs, k): the numeric columns of obs of minibatches; ``None`` without such columns.
    obsm
        float32, shape (n_obs, n_dims): the embeddings of minibatches by name.
    matrices
        The matrices that are read beside X.
    measured
        Which genes were measured in each cell, if minibatches say it.
    column_transform
        Orders the columns of X, if the dataset has the genes of ``select_genes``; else ``None``.
    queries
        The queries of obs and of var, as plain values.
    splits
        The splits that led to these cells, in order, as plain values.
    all_genes
        Whether all genes of var are selected; the array may have more columns than var has genes.
    """

    experiment_uri: str
    measurement_name: str
    X_name: str
    source: Any
    joinids: JoinIds
    var_joinids: IntArray
    encoders: Mapping[str, Encoder]
    codes: Mapping[str, npt.NDArray[Any] | JoinIds]
    soma_joinids: IntArray | None = None
    nnz: npt.NDArray[Any] | None = None
    raw_sum: npt.NDArray[Any] | None = None
    raw_squares: npt.NDArray[Any] | None = None
    content: Content = NOTHING_MORE
    obs_values: npt.NDArray[np.float32] | None = None
    obsm: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    matrices: tuple[FurtherMatrix, ...] = ()
    measured: Measured | None = None
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
        """Number of selected cells."""
        return len(self.joinids)

    @property
    def n_vars(self) -> int:
        """Number of selected genes."""
        return len(self.var_joinids)

    @property
    def joinid_column(self) -> JoinIds | IntArray:
        """The ``soma_joinid`` of each cell, to be indexed by positions."""
        return self.joinids if self.soma_joinids is None else self.soma_joinids

    def find(self, soma_joinids: IntArray) -> IntArray:
        """Return the position of the cell with each ``soma_joinid``, -1 if it is not selected."""
        if self.soma_joinids is None:
            return self.joinids.find(soma_joinids)
        order = np.argsort(self.soma_joinids)  # those of a copy are in random order
        places = find_in(self.soma_joinids[order], soma_joinids)
        return np.where(places < 0, -1, order[places])

    @property
    def further(self) -> tuple[Selection, ...]:
        """The same cells in each of the matrices that are read beside X, in their order."""
        return tuple(self._in(matrix) for matrix in self.matrices)

    def _in(self, matrix: FurtherMatrix) -> Selection:
        """Return the same cells in another matrix. A layer keeps ``nnz``, of X, for planning."""
        own: dict[str, Any] = {
            **{name: getattr(matrix, name) for name in ("measurement_name", "X_name", "source")},
            **dict.fromkeys(("raw_sum", "raw_squares", "obs_values", "measured")),
            **{"encoders": {}, "codes": {}, "obsm": {}, "content": NOTHING_MORE, "matrices": ()},
        }
        if matrix.var_joinids is not None:
            own |= {"var_joinids": matrix.var_joinids, "nnz": None, "column_transform": None, "all_genes": True}
        return replace(self, **own)

    @property
    def held_bytes(self) -> int:
        """Bytes of embeddings, numeric columns of obs, and the table of measured genes."""
        values = 0 if self.obs_values is None else self.obs_values.nbytes
        measured = 0 if self.measured is None else self.measured.table.nbytes
        return values + measured + sum(rows.nbytes for rows in self.obsm.values())

    @property
    def mask_bytes(self) -> int:
        """Bytes of a cell in the mask of measured genes; 0 if minibatches have none."""
        return 0 if self.measured is None else self.n_vars

    def take(self, positions: IntArray, split: Mapping[str, Any] | None = None) -> Selection:
        """Keep the cells at ascending positions; ``split`` is appended to the splits."""
        joinids = self.joinids.take(positions)
        codes = {name: joinids if column is self.joinids else column[positions] for name, column in self.codes.items()}
        figures: dict[str, Any] = {
            name: None if getattr(self, name) is None else getattr(self, name)[positions] for name in _PER_CELL
        }
        obsm = {name: rows[positions] for name, rows in self.obsm.items()}
        splits = self.splits if split is None else (*self.splits, split)
        measured = self.measured and self.measured.take(positions)
        return replace(self, joinids=joinids, codes=codes, obsm=obsm, splits=splits, measured=measured, **figures)

    def take_vars(self, positions: IntArray, column_transform: Any) -> Selection:
        """Keep the genes at ascending positions; ``column_transform`` orders them."""
        return replace(
            self,
            var_joinids=self.var_joinids[positions],
            column_transform=column_transform,
            measured=self.measured and self.measured.take_vars(positions),
            all_genes=self.all_genes and len(positions) == self.n_vars,
        )

    def obs_rows(self, positions: IntArray) -> IntArray:
        """Return the codes of the cells at ``positions``: int64, shape (len(positions), n_columns)."""
        rows = np.empty((len(positions), len(self.codes)), np.int64)
        for k, column in enumerate(self.codes.values()):
            rows[:, k] = column[positions]
        return rows


_PER_CELL = ("soma_joinids", "nnz", "raw_sum", "raw_squares", "obs_values")
