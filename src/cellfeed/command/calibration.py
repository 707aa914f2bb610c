"""Settings of a dataset side by side: the result of ``cellfeed calibrate``, as a table, JSON or a picture."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellfeed._checks import format_bytes, parse_bytes
from cellfeed._tabular import html_table
from cellfeed.command.bench import Measured
from cellfeed.command.plot import Point, check_file, scatter
from cellfeed.plan.summary import Plan


@dataclass(frozen=True)
class Setting:
    """One way to read and shuffle a store.

    Attributes
    ----------
    name
        The name in the table.
    kind
        ``"own plan"``, ``"mixing"``, ``"joinid order"`` or ``"published default"``.
    parameters
        Parameters of :class:`cellfeed.ExperimentDataset` that differ between settings.
    requested
        Whether the setting fulfils the arguments: the target of mixing at the lowest cost or, without a target, the
        own plan at ``memory_budget``.
    plan
        The plan; ``None`` if the setting is impossible.
    impossible
        Why the setting is impossible.
    speed
        The measurement, if there is one.
    """

    name: str
    kind: str
    parameters: Mapping[str, Any]
    requested: bool = False
    plan: Plan | None = None
    impossible: str | None = None
    speed: Measured | None = None

    @property
    def chosen(self) -> bool:
        """Whether the setting is requested and possible."""
        return self.requested and self.plan is not None

    @property
    def budget(self) -> str:
        """The memory budget as text."""
        return format_bytes(parse_bytes(self.parameters["memory_budget"]))

    def as_dict(self) -> dict[str, Any]:
        """Return the figures by name, for JSON."""
        plan, speed = self.plan, self.speed
        return {
            "name": self.name,
            "kind": self.kind,
            "parameters": dict(self.parameters),
            "chosen": self.chosen,
            "impossible": self.impossible,
            "plan": plan and {name: _finite(value) for name, value in plan.as_dict().items()},
            "effective_over_nominal": plan and _finite(plan.mixing),
            "cells_per_second": speed and _finite(speed.cells_per_second),
            "first_s": speed and speed.first_s,
        }


def _finite(value: Any) -> Any:
    """Return ``None`` for NaN and infinities, which JSON lacks."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Calibration:
    """Settings side by side; printed, and shown in a notebook, as a table.

    Attributes
    ----------
    n_obs, n_vars
        Number of selected cells and genes.
    batch_size
        Cells per minibatch.
    label
        The column of obs whose mixing is compared; ``None`` is the worst case.
    settings
        The settings in the order of the table.
    """

    n_obs: int
    n_vars: int
    batch_size: int
    label: str | None
    settings: tuple[Setting, ...]

    @property
    def chosen(self) -> Setting | None:
        """The marked setting; ``None`` if the requested setting is impossible."""
        return next((setting for setting in self.settings if setting.chosen), None)

    @property
    def title(self) -> str:
        """The comparison in one line."""
        kind = "the worst labels" if self.label is None else self.label
        return f"{self.n_obs:,} cells x {self.n_vars:,} genes, minibatches of {self.batch_size:,}, mixing of {kind}"

    def __str__(self) -> str:
        return "\n".join([self.title, "", *_aligned(_table(self.settings)), "", self._conclusion()])

    def _repr_html_(self) -> str:
        heads, *lines = _table(self.settings)
        return html_table(lines, title=self.title, heads=heads, note=self._conclusion())

    def _conclusion(self) -> str:
        if self.chosen is not None:
            parameters = ", ".join(f"{name}={value!r}" for name, value in self.chosen.parameters.items())
            return f"* is chosen: ExperimentDataset(..., {parameters})"
        reasons = (setting.impossible for setting in self.settings if setting.requested)
        return f"Nothing is chosen: {next(reasons, None)}"

    def as_dict(self) -> dict[str, Any]:
        """Return the figures by name, for JSON, without NaN and infinities."""
        return {
            "n_obs": self.n_obs,
            "n_vars": self.n_vars,
            "batch_size": self.batch_size,
            "label": self.label,
            "settings": [setting.as_dict() for setting in self.settings],
        }

    def draw(self, path: str | Path) -> None:
        """Draw effective batch size against memory.

        Parameters
        ----------
        path
            A file that ends in ``.png``, ``.svg`` or ``.pdf``.

        Raises
        ------
        ValueError
            If the file has another extension.
        OSError
            If the file cannot be written.
        MissingDependencyError
            If matplotlib or adjustText is not installed.
        """
        points = [
            Point(
                name=setting.budget if setting.kind == "own plan" else setting.name,
                kind=setting.kind,
                memory_bytes=setting.plan.peak_memory_bytes,
                effective_batch_size=setting.plan.effective_batch_size,
                amplification=setting.plan.decode_amplification,
                chosen=setting.chosen,
            )
            for setting in self.settings
            if setting.plan is not None
        ]
        scatter(points, check_file(path), batch_size=self.batch_size, title=self.title)


def _table(settings: Sequence[Setting]) -> list[list[str]]:
    """Return the heads and the lines of the table; an impossible setting has its reason in place of figures."""
    heads = ["  setting", "budget", "effective", "ratio", "chunks mixed", "pool", "peak", "decoded", "cells/s", "first"]
    measured = any(setting.speed for setting in settings)
    return [heads if measured else heads[:-2], *(_cells(setting, measured) for setting in settings)]


def _aligned(lines: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield lines with names to the left and figures to the right."""
    complete = [line for line in lines if len(line) == len(lines[0])]
    widths = [max(len(line[k]) for line in (complete if k > 1 else lines)) for k in range(len(lines[0]))]
    for name, *cells in lines:
        others = (f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=False))
        yield "  ".join([f"{name:<{widths[0]}}", *others]).rstrip()


def _cells(setting: Setting, measured: bool) -> list[str]:
    plan, speed = setting.plan, setting.speed
    cells = [f"{'*' if setting.chosen else ' '} {setting.name}", setting.budget]
    if plan is None:
        return [*cells, f"impossible ({_reason(setting.impossible or '')})"]
    cells += [
        f"{plan.effective_batch_size:,.4g}",
        f"{plan.mixing:.2f}",
        f"{plan.chunks_per_block:,} x {plan.chunk_rows:,.4g}",
        format_bytes(plan.pool_bytes),
        format_bytes(plan.peak_memory_bytes),
        f"{plan.decode_amplification:.3g}",
    ]
    if measured:
        cells += [f"{speed.cells_per_second:,.0f}", f"{speed.first_s:.2g} s"] if speed else ["", ""]
    return cells


def _reason(message: str) -> str:
    """Return the part of a message that its line of the table lacks: the end of its first sentence.

    Examples
    --------
    >>> _reason("mixing=0.9 is not possible within memory_budget=1 GiB; possible is 0.5. Ways out: ...")
    'possible is 0.5'
    """
    return re.split(r"\. |: ", message)[0].split("; ")[-1]
