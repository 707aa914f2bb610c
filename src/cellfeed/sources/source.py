"""The protocol of a source of cells: what the rest of cellfeed uses of a store.

To add another kind of source, write a class that fulfils :class:`Source` in a folder beside ``soma/``, and a function
that makes a :class:`~cellfeed.select.selection.Selection` with an object of this class. Call this function in
``opening.py``, the only module that chooses among the kinds of sources.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import pandas as pd

from cellfeed._geometry import ArrayGeometry
from cellfeed._joinids import IntArray
from cellfeed.plan.planner import Resources
from cellfeed.rows.row_allocator import Reader
from cellfeed.select.selection import Selection
from cellfeed.sources.retry import Retries
from cellfeed.stats import Meter

ColumnChoice = Callable[[Sequence[str]], Sequence[str]]
"""Receives the names of all columns of obs or var; returns the names of those to read, or raises an error."""


class OpenReader(NamedTuple):
    """A reader and its limits: ``rows_per_read`` rows in one read, and ``n_reads`` reads at the same time."""

    reader: Reader
    rows_per_read: int
    n_reads: int


class Source(Protocol):
    """One X with its obs and var, at one point in time.

    A source is picklable, has no open handle, and works in every process: worker processes receive a copy. ``str()``
    returns its URI or path without credentials, for messages.
    """

    @property
    def geometry(self) -> ArrayGeometry:
        """Layout of the values of X in the store."""

    @property
    def is_remote(self) -> bool:
        """Whether X is on an object store: then more requests run at the same time."""

    @property
    def timestamp_ms(self) -> int:
        """Milliseconds since 1970: the source reads the state of the store at this time."""

    @property
    def identity(self) -> str | None:
        """Identifier of X, which changes if X is created again in its place; ``None`` if it is unknown."""

    def read_obs(self, joinids: IntArray, what: str, choose: ColumnChoice) -> pd.DataFrame:
        """Return columns of obs for ascending joinids, in their order; ``what`` names the values in errors."""

    def read_var(self, joinids: IntArray, what: str, choose: ColumnChoice) -> pd.DataFrame:
        """Return columns of var for ascending joinids, in their order; ``what`` names the values in errors."""

    def retries(self, *, n_threads: int, meter: Meter) -> Retries:
        """Return an object that makes the requests of one epoch; the caller closes it after the epoch.

        A source that does not retry returns :data:`~cellfeed.sources.retry.NO_RETRY`.
        """

    def open_reader(
        self, selection: Selection, resources: Resources, *, verify: bool, meter: Meter, retries: Retries
    ) -> OpenReader:
        """Open a reader of the selected rows and genes; the caller closes it.

        Parameters
        ----------
        selection
            The selection to read.
        resources
            Limits of memory and threads. Values that do not fit a small integer type have the type ``pool_dtype``.
        verify
            Whether to check what the store itself records of its bytes.
        meter
            Counts bytes, values and seconds.
        retries
            The object that :meth:`retries` returned.

        Raises
        ------
        ReadError
            If X is not the one from which the cells were selected.
        """
