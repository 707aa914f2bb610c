"""Objects that are printed, and shown in a notebook, as a table."""

from __future__ import annotations

import abc
from collections.abc import Mapping

import pandas as pd


class Tabular:
    """Base class of objects with a table of names and values.

    Examples
    --------
    >>> class Cells(Tabular):
    ...     def _table(self):
    ...         return {"cells": "700", "variable genes": "200 of 765"}
    >>> print(Cells())
    cells           700
    variable genes  200 of 765
    """

    @abc.abstractmethod
    def _table(self) -> Mapping[str, str]:
        """Return the rows of the table, in order: values by name."""

    def __str__(self) -> str:
        table = self._table()
        width = max(map(len, table))
        return "\n".join(f"{name:<{width}}  {value}" for name, value in table.items())

    def _repr_html_(self) -> str:
        html = pd.Series(self._table()).to_frame().to_html(header=False)
        return html.replace("<td>", '<td style="text-align: left">')  # a notebook aligns cells to the right
