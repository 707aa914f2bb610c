"""Objects that are printed, and shown in a notebook, as a table."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
from html import escape


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
        return html_table(self._table().items(), title=type(self).__name__)


LEFT = ' style="text-align: left"'
"""A notebook aligns cells to the right."""


def html_table(lines: Iterable[Sequence[str]], *, title: str, heads: Sequence[str] = (), note: str = "") -> str:
    """Return a table in the colours and letters of the page that shows it, such as a notebook.

    Parameters
    ----------
    lines
        The name and the values of each row. The last value of a short row extends to the last column.
    title, note
        Text above and below the table.
    heads
        Names of the columns. Values under them are aligned as the page aligns cells, others to the left.

    Examples
    --------
    >>> print(html_table([["cells", "< 700"]], title="Sample"))
    <div><strong>Sample</strong>
    <table>
    <tr><th scope="row" style="text-align: left">cells</th><td style="text-align: left">&lt; 700</td></tr>
    </table></div>
    """
    columns = (f'<th scope="col"{LEFT if k == 0 else ""}>{escape(name)}</th>' for k, name in enumerate(heads))
    rows = [f"<tr>{''.join(columns)}</tr>"] if heads else []
    for name, *values in lines:
        n_missing = max(len(heads) - 1 - len(values), 0)
        cells = [f"<td{'' if heads else LEFT}>{escape(value)}</td>" for value in values]
        if n_missing:
            cells[-1] = f'<td colspan="{n_missing + 1}"{LEFT}>{escape(values[-1])}</td>'
        rows.append(f'<tr><th scope="row"{LEFT}>{escape(name)}</th>{"".join(cells)}</tr>')
    below = f"\n{escape(note)}" if note else ""
    return "\n".join([f"<div><strong>{escape(title)}</strong>", "<table>", *rows, f"</table>{below}</div>"])
