"""Compare settings on a store before training on it: what ``cellfeed calibrate`` runs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from cellfeed._checks import format_bytes, parse_bytes
from cellfeed.command.bench import Measured, check_seconds, measure
from cellfeed.command.plot import Point, check_file, scatter
from cellfeed.errors import PlanError
from cellfeed.loader.dataset import ExperimentDataset
from cellfeed.plan.settings import check_mixing, parse_fraction
from cellfeed.plan.summary import Plan
from cellfeed.stats import hidden

SHARES = (0.25, 0.5, 1, 2, 4)
"""Fractions of the memory budget for which the own plan is shown."""

TARGETS = (0.5, 0.7, 0.9)
"""Mixings that are always shown."""

PUBLISHED: dict[str, Any] = {"soma_chunk_size": 64, "shuffle_chunk_count": 2000}
"""The defaults of the Census team's loader of 2024."""

PLAIN: dict[str, Any] = {"shuffle": True, "soma_chunk_size": None, "shuffle_chunk_count": None, "mixing": None}
"""What a setting has that does not say otherwise: the defaults of a dataset."""


@dataclass(frozen=True)
class Setting:
    """One way to read and shuffle a store.

    Attributes
    ----------
    name, kind
        What it is called; ``"own plan"``, ``"mixing"``, ``"joinid order"`` or ``"published default"``.
    parameters
        Those of :class:`cellfeed.ExperimentDataset` that make it, beside those that all settings share.
    asked
        Whether it is what was asked for: the target at the lowest cost, or without one the own plan at the budget.
    plan
        What it will do and cost; ``None`` if it is not possible.
    impossible
        Why it is not possible.
    speed
        What was measured, if anything was.
    """

    name: str
    kind: str
    parameters: Mapping[str, Any]
    asked: bool = False
    plan: Plan | None = None
    impossible: str | None = None
    speed: Measured | None = None

    @property
    def chosen(self) -> bool:
        """Whether it was asked for and is possible."""
        return self.asked and self.plan is not None

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
    """Put ``None`` for what JSON has no number for."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Calibration:
    """Settings side by side; it prints as a table.

    Attributes
    ----------
    n_obs, n_vars
        Selected cells and genes.
    batch_size
        Cells of a minibatch.
    label
        The column of obs whose labels are meant; ``None`` stands for the worst labels that there can be.
    settings
        In the order of the table.
    """

    n_obs: int
    n_vars: int
    batch_size: int
    label: str | None
    settings: tuple[Setting, ...]

    @property
    def chosen(self) -> Setting | None:
        """The setting that is marked; ``None`` if what was asked for is not possible."""
        return next((setting for setting in self.settings if setting.chosen), None)

    @property
    def title(self) -> str:
        """What is compared, in one line."""
        kind = "the worst labels" if self.label is None else self.label
        return f"{self.n_obs:,} cells x {self.n_vars:,} genes, minibatches of {self.batch_size:,}, mixing of {kind}"

    def __str__(self) -> str:
        return "\n".join([self.title, "", *_table(self.settings), "", self._conclusion()])

    def _conclusion(self) -> str:
        if self.chosen is not None:
            given = ", ".join(f"{name}={value!r}" for name, value in self.chosen.parameters.items())
            return f"* is chosen: ExperimentDataset(..., {given})"
        reasons = (setting.impossible for setting in self.settings if setting.asked)
        return f"Nothing is chosen: {next(reasons, None)}"

    def as_dict(self) -> dict[str, Any]:
        """Return the figures by name, for JSON: without NaN or infinities."""
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
                name=s.name if s.kind != "own plan" else _budget(s),
                kind=s.kind,
                memory_bytes=s.plan.peak_memory_bytes,
                effective_batch_size=s.plan.effective_batch_size,
                amplification=s.plan.decode_amplification,
                chosen=s.chosen,
            )
            for s in self.settings
            if s.plan is not None
        ]
        scatter(points, check_file(path), batch_size=self.batch_size, title=self.title)


# ---------------------------------------------------------------------- the table


def _table(settings: Sequence[Setting]) -> Iterator[str]:
    """Yield lines; what is not possible has its reason in place of figures."""
    heads = ["  setting", "budget", "effective", "ratio", "chunks mixed", "pool", "peak", "decoded", "cells/s", "first"]
    measured = any(setting.speed for setting in settings)
    lines = [heads if measured else heads[:-2], *(_cells(setting, measured) for setting in settings)]
    complete = [line for line in lines if len(line) == len(lines[0])]
    widths = [max(len(line[k]) for line in (complete if k > 1 else lines)) for k in range(len(lines[0]))]
    for name, *cells in lines:
        others = (f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=False))
        yield "  ".join([f"{name:<{widths[0]}}", *others]).rstrip()


def _cells(setting: Setting, measured: bool) -> list[str]:
    plan, speed = setting.plan, setting.speed
    named = [f"{'*' if setting.chosen else ' '} {setting.name}", _budget(setting)]
    if plan is None:
        return [*named, f"impossible ({_shortened(setting.impossible or '')})"]
    figures = [
        f"{plan.effective_batch_size:,.4g}",
        f"{plan.mixing:.2f}",
        f"{plan.chunks_per_block:,} x {plan.chunk_rows:,.4g}",
        format_bytes(plan.pool_bytes),
        format_bytes(plan.peak_memory_bytes),
        f"{plan.decode_amplification:.3g}",
    ]
    times = [f"{speed.cells_per_second:,.0f}", f"{speed.first_s:.2g} s"] if speed else ["", ""]
    return [*named, *figures, *(times if measured else [])]


def _budget(setting: Setting) -> str:
    return format_bytes(parse_bytes(setting.parameters["memory_budget"]))


def _shortened(reason: str) -> str:
    """Keep what a line of the table does not say by itself: the end of the message's first sentence.

    Examples
    --------
    >>> _shortened("mixing=0.9 is not possible within memory_budget=1 GiB; possible is 0.5. Ways out: ...")
    'possible is 0.5'
    """
    return re.split(r"\. |: ", reason)[0].split("; ")[-1]


# ---------------------------------------------------------------------- the settings


def run(
    uri: str,
    *,
    label: str | None = None,
    mixing: float | str | None = None,
    memory_budget: int | str = "2 GiB",
    speed: bool = False,
    seconds: float = 5.0,
    picture: str | Path | None = None,
    progress: bool = True,
    **parameters: Any,
) -> Calibration:
    """Compare settings on a store: how well each mixes, and what it costs.

    Compared are the own plan at several memory budgets, several targets of mixing, the order of joinids, and the
    published default. Only obs and what the array tells of itself are read, unless speed is asked for.

    Parameters
    ----------
    uri
        A SOMA experiment.
    label
        The column of obs to mix, such as ``"dataset_id"``. ``None`` assumes the worst labels: one per chunk.
    mixing
        The target, above 0 and at most 1: the setting that reaches it for ``label`` at the lowest cost is marked.
        ``None`` marks the own plan at ``memory_budget``.
    memory_budget
        Of all settings but the own plans: these are shown for a quarter to four times as much.
    speed, seconds
        Measure each setting; for how many seconds, from its first minibatch on.
    picture
        A file to draw into, which ends in ``.png``, ``.svg`` or ``.pdf``.
    progress
        Show progress bars.
    parameters
        Further parameters of :class:`cellfeed.ExperimentDataset`, such as ``batch_size``, for all settings.

    Returns
    -------
    :class:`Calibration`; ``print`` it.

    Raises
    ------
    SelectionError
        If the experiment cannot be opened, or obs has no such column.
    PlanError
        If a number makes no plan, or the budget has room for none.
    ValueError, OSError, MissingDependencyError
        As for :meth:`Calibration.draw`.

    Examples
    --------
    >>> made = run(cellfeed.datasets.pbmc700(), batch_size=64, mixing=0.9, progress=False)
    >>> made.chosen.parameters["mixing"]
    0.9
    """
    target: float | None = parse_fraction(mixing)
    _check(target, seconds, parameters)
    if picture is not None:
        check_file(picture)
    # The published default has a plan in any budget, so cells are selected whatever else is possible.
    dataset = ExperimentDataset(uri, **PUBLISHED, memory_budget=memory_budget, **parameters)
    settings = _fold(_plan_all(dataset, _candidates(memory_budget, target), label, progress))
    if target is not None:
        settings = _choose(settings, target, memory_budget)
    _refuse_small_budget(settings, memory_budget)
    if speed:
        settings = _measure_all(dataset, settings, seconds, progress)
    of = next(setting.plan for setting in settings if setting.plan is not None)
    made = Calibration(of.n_obs, of.n_vars, of.batch_size, label, tuple(settings))
    if picture is not None:
        made.draw(picture)
    return made


def _check(mixing: float | None, seconds: float, parameters: Mapping[str, Any]) -> None:
    """Refuse what can be refused before obs is read."""
    if mixing is not None:
        check_mixing(mixing)
    check_seconds(seconds)
    for name in (*PUBLISHED, "shuffle"):
        if name in parameters:
            raise PlanError(f"calibrate compares several values of {name}; leave {name}={parameters[name]!r} out")


def _candidates(memory_budget: int | str, mixing: float | None) -> Iterator[Setting]:
    given = {"memory_budget": memory_budget}
    for share in SHARES:
        budget = memory_budget if share == 1 else max(1, int(parse_bytes(memory_budget) * share))
        yield Setting("own plan", "own plan", {"memory_budget": budget}, asked=share == 1 and mixing is None)
    for target in sorted({*TARGETS, *([] if mixing is None else [mixing])}):
        yield Setting(f"mixing={target:g}", "mixing", {"mixing": target, **given}, asked=target == mixing)
    yield Setting("shuffle=False", "joinid order", {"shuffle": False, **given})
    yield Setting("published default", "published default", {**PUBLISHED, **given})


def _plan_all(
    dataset: ExperimentDataset, candidates: Iterator[Setting], label: str | None, progress: bool
) -> list[Setting]:
    """Plan each setting, over one selection and one reading of the label."""
    codes = None if label is None else dataset._engine.labels(label)
    planned = []
    for setting in tqdm(list(candidates), desc="planning", unit=" settings", leave=False, disable=hidden(progress)):
        try:
            plan = dataset._engine.derive(**{**PLAIN, **setting.parameters}).plan(label, codes)
        except PlanError as refused:
            planned.append(replace(setting, impossible=str(refused)))
        else:
            planned.append(replace(setting, plan=plan))
    return planned


def _fold(settings: Sequence[Setting]) -> list[Setting]:
    """Let neighbouring targets that lead to one plan share a line; that of the one asked for."""
    folded: list[Setting] = []
    for setting in settings:
        last = folded[-1] if folded else setting
        if folded and setting.kind == last.kind == "mixing" and setting.plan == last.plan is not None:
            kept = setting if setting.asked else last
            folded[-1] = replace(kept, name=f"{last.name}, {setting.parameters['mixing']:g}")
        else:
            folded.append(setting)
    return folded


def _choose(settings: Sequence[Setting], mixing: float, memory_budget: int | str) -> list[Setting]:
    """Mark the setting that reaches a target at the lowest cost in decoding; the one asked for if none is cheaper."""
    reaching = [
        setting
        for setting in settings
        if setting.plan is not None
        and setting.kind != "published default"
        and setting.parameters["memory_budget"] == memory_budget
        and setting.plan.effective_batch_size >= mixing * setting.plan.batch_size
    ]
    cheapest = min(reaching, key=lambda s: (s.plan.decode_amplification, not s.asked), default=None)  # type: ignore[union-attr]
    if cheapest is None:
        return list(settings)
    return [replace(setting, asked=setting is cheapest) for setting in settings]


def _refuse_small_budget(settings: Sequence[Setting], memory_budget: int | str) -> None:
    """Refuse a budget in which nothing but the published default, which heeds none, has a plan."""
    within = [s for s in settings if s.parameters["memory_budget"] == memory_budget and s.kind != "published default"]
    if all(setting.plan is None for setting in within):
        raise PlanError(within[0].impossible)


def _measure_all(
    dataset: ExperimentDataset, settings: Sequence[Setting], seconds: float, progress: bool
) -> list[Setting]:
    """Measure each possible setting, by a dataset of its own that goes when it has been measured."""
    possible = [setting for setting in settings if setting.plan is not None]
    next(iter(dataset._with(**{**PLAIN, **possible[0].parameters})), None)  # compiles: not what is measured
    measured = []
    for setting in settings:
        if setting.plan is not None:
            made = dataset._with(**{**PLAIN, **setting.parameters})
            title = f"{setting.name}, {_budget(setting)}"
            setting = replace(setting, speed=measure(made, seconds=seconds, progress=progress, title=title))
        measured.append(setting)
    return measured
