"""The media of a dataset: its source, and a local copy of it, which has an order of its own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy.typing as npt

from cellfeed._digests import digest, digest_of_text
from cellfeed._joinids import IntArray
from cellfeed.errors import PlanError, StateError
from cellfeed.loader.reading import Appender
from cellfeed.loader.world import all_ranks_agree
from cellfeed.plan import state
from cellfeed.plan.planner import Planner
from cellfeed.plan.resampling import Resampling
from cellfeed.plan.settings import Settings
from cellfeed.plan.state import COPY, SOURCE
from cellfeed.rows.half_precision import HALF_DTYPES
from cellfeed.select.selection import Selection


class LocalCopy(Protocol):
    """A copy of the cells of a source on a local disk; ``cellfeed.sources.anndata.copies.local_copy`` has the class."""

    @property
    def is_writable(self) -> bool:
        """Whether epochs append cells to the copy."""

    def find(self, selection: Selection) -> tuple[Selection, IntArray] | None:
        """Return the cells of a selection in the copy, and their positions in the selection; ``None`` if it lacks one.

        The cells are in the order of the copy.
        """

    def discard(self) -> None:
        """Remove the copy if nothing of it was written."""

    def count(self, selection: Selection) -> int:
        """Return the number of cells of a selection that the copy has."""

    def appender(self, selection: Selection) -> Appender | None:
        """Return an object that appends the cells of a selection that the copy lacks; ``None`` for other genes."""


@dataclass(frozen=True, eq=False)
class Medium:
    """A source, or a local copy, with the plan of its epochs.

    Attributes
    ----------
    name
        ``"source"`` or ``"copy"``.
    selection, settings, planner
        The cells, in the order of their rows, and how epochs over them are planned.
    order
        int64, shape (n_obs,): positions of these cells in the selection of the source; ``None`` of the source itself.
    """

    name: str
    selection: Selection
    settings: Settings
    planner: Planner
    order: IntArray | None = None

    def in_order(self, codes: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return values of the cells, given in the order of the source, in the order of this medium."""
        return codes if self.order is None else codes[self.order]

    @cached_property
    def fingerprint(self) -> state.Fingerprint:
        """Everything on which the order of an epoch depends."""
        selection, settings = self.selection, self.settings
        fingerprint: state.Fingerprint = {
            "measurement_name": selection.measurement_name,
            "X_name": selection.X_name,
            "n_obs": selection.n_obs,
            "obs_joinids": digest(selection.joinid_column[:]),
            "n_vars": selection.n_vars,
            "var_joinids": digest(selection.var_joinids),
            "obs nnz": digest(selection.nnz),
            "row_extent": selection.geometry.row_extent,
            "chunk_rows": self.planner.chunk_rows,
            "seed": settings.seed,
            "shuffle": settings.shuffle,
            "batch_size": settings.batch_size,
            "drop_last": settings.drop_last,
            "rank_remainder": settings.rank_remainder,
            "soma_chunk_size": settings.soma_chunk_size,
            "shuffle_chunk_count": settings.shuffle_chunk_count,
        }
        if self.planner.resampling is not None:
            fingerprint["resampling"] = self.planner.resampling.digest
        return fingerprint if self.name == SOURCE else {"medium": self.name, **fingerprint}

    @property
    def digest(self) -> str:
        """A short hash of the fingerprint."""
        return digest_of_text(repr(self.fingerprint))


class Media:
    """The source of a dataset and its local copy, if it has one.

    Parameters
    ----------
    selection, settings
        Those of the dataset.
    local_copy
        The copy.
    resampling
        How often each cell comes; ``None`` if each comes once.
    """

    def __init__(
        self,
        selection: Selection,
        settings: Settings,
        local_copy: LocalCopy | None,
        resampling: Resampling | None = None,
    ) -> None:
        self.local_copy = local_copy
        writes = local_copy is not None and local_copy.is_writable
        self.source = Medium(
            SOURCE, selection, settings, Planner(selection, settings, exact=writes, resampling=resampling)
        )
        self._copy: Medium | None = None
        self._was_complete = self._find() is not None
        self._writes = writes and not self._rounds and settings.shuffle  # a copy is in random order
        if local_copy is not None and writes and self._rounds and not self._was_complete:
            local_copy.discard()
            raise PlanError(
                f"X_dtype={settings.X_dtype!r} with local_copy=: rows of a copy have the exact values of the store, "
                f'which are {selection.geometry.dtype}; give X_dtype="stored", or write the copy first, with '
                f"dataset.write_copy(path) of a dataset without local_copy="
            )

    @property
    def _rounds(self) -> bool:
        """Whether values are rounded when they are read, and not when a minibatch is made of them."""
        X_dtype = self.source.settings.X_dtype
        stored = self.source.selection.geometry.dtype
        return X_dtype in HALF_DTYPES or (X_dtype != "stored" and stored == "float64")

    def _find(self) -> Medium | None:
        """Return the local copy if it has all cells of the dataset, else ``None``."""
        selection, settings = self.source.selection, self.source.settings
        if self._copy is None and self.local_copy is not None:
            found = self.local_copy.find(selection)
            if found is not None:
                copied, order = found
                resampling = self.source.planner.resampling
                planner = Planner(copied, settings, resampling=resampling and resampling.take(order))
                self._copy = Medium(COPY, copied, settings, planner, order)
        return self._copy

    @property
    def copy(self) -> Medium | None:
        """The local copy if it has all cells of the dataset, else ``None``. Cells in order are read in the source."""
        return self._find() if self.source.settings.shuffle else None

    def get(self, name: str) -> Medium:
        """Return a medium by its name."""
        medium = self.source if name == SOURCE else self.copy
        if medium is None:
            raise StateError(
                "the state belongs to an epoch of a local copy; give local_copy= the path of that copy, or begin "
                "without the state"
            )
        return medium

    def choose(self, epoch: int, rank: int, world_size: int) -> Medium:
        """Return the medium of an epoch that begins: the copy if it has all cells of the dataset.

        All ranks of a process group read the same: the source if their copies differ. Ranks without a process group
        read a copy only if it was complete when the dataset was made.
        """
        copy = self.copy
        if world_size > 1 and self.local_copy is not None:
            key = f"cellfeed/{self.source.digest}/{epoch}"
            agreed = all_ranks_agree(key, copy.digest if copy else "", rank, world_size)
            return self.get(COPY if (self._was_complete if agreed is None else agreed) else SOURCE)
        return copy or self.source

    def appender(self, medium: Medium) -> Appender | None:
        """Return an object that appends the cells of an epoch to the copy; ``None`` if the epoch appends nothing."""
        if self.local_copy is None or medium.name == COPY or not (self._writes and self.local_copy.is_writable):
            return None
        return self.local_copy.appender(medium.selection)
