"""Compare settings of a dataset before training: the work of ``cellfeed calibrate``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cellfeed._checks import parse_bytes
from cellfeed._progress import progress_bar
from cellfeed.command.bench import check_seconds, measure
from cellfeed.command.calibration import Calibration, Setting
from cellfeed.command.plot import check_file
from cellfeed.errors import PlanError
from cellfeed.loader.dataset import ExperimentDataset
from cellfeed.plan.settings import check_mixing, parse_fraction

MULTIPLES = (0.25, 0.5, 1, 2, 4)
"""Multiples of the memory budget for which the own plan is compared."""

TARGETS = (0.5, 0.7, 0.9)
"""Targets of mixing that are always compared."""

PUBLISHED: dict[str, Any] = {"soma_chunk_size": 64, "shuffle_chunk_count": 2000}
"""The defaults of the Census team's loader of 2024."""

PLAIN: dict[str, Any] = {"shuffle": True, "soma_chunk_size": None, "shuffle_chunk_count": None, "mixing": None}
"""Defaults of a dataset, for parameters that a setting does not give."""


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
    """Compare settings of a dataset: how well each mixes a label, and its cost.

    The settings are the own plan at several memory budgets, several targets of mixing, the order of joinids, and the
    published default. Without ``speed``, X is not read.

    Parameters
    ----------
    uri
        The URI of a SOMA experiment.
    label
        The column of obs to mix, such as ``"dataset_id"``. ``None`` assumes the worst case: a label per chunk.
    mixing
        The target, above 0 and at most 1: the setting that reaches it for ``label`` at the lowest cost is marked.
        ``None`` marks the own plan at ``memory_budget``.
    memory_budget
        The budget of all settings; own plans are also compared at a quarter to four times this budget.
    speed
        Whether to measure each setting.
    seconds
        Duration of a measurement, from the first minibatch on.
    picture
        A file for a picture, which ends in ``.png``, ``.svg`` or ``.pdf``.
    progress
        Whether to show progress bars.
    parameters
        Further parameters of :class:`cellfeed.ExperimentDataset`, such as ``batch_size``, for all settings.

    Returns
    -------
    A :class:`~cellfeed.command.calibration.Calibration`; ``print`` it.

    Raises
    ------
    SelectionError
        If the experiment cannot be opened, or obs has no such column.
    PlanError
        If a number is invalid, or the budget is too small for every setting.
    ValueError, OSError, MissingDependencyError
        As for :meth:`~cellfeed.command.calibration.Calibration.draw`.

    Examples
    --------
    >>> calibration = run(cellfeed.datasets.pbmc700(), batch_size=64, mixing=0.9, progress=False)
    >>> calibration.chosen.parameters["mixing"]
    0.9
    """
    target: float | None = parse_fraction(mixing)
    _check(target, seconds, parameters)
    if picture is not None:
        check_file(picture)
    # The published default has a plan in any budget, so this dataset can always be made.
    dataset = ExperimentDataset(uri, **PUBLISHED, memory_budget=memory_budget, **parameters)
    settings = _merge(_plan_all(dataset, _candidates(memory_budget, target), label, progress))
    if target is not None:
        settings = _choose(settings, target, memory_budget)
    _refuse_small_budget(settings, memory_budget)
    if speed:
        settings = _measure_all(dataset, settings, seconds, progress)
    plan = next(setting.plan for setting in settings if setting.plan is not None)
    calibration = Calibration(plan.n_obs, plan.n_vars, plan.batch_size, label, tuple(settings))
    if picture is not None:
        calibration.draw(picture)
    return calibration


def _check(mixing: float | None, seconds: float, parameters: Mapping[str, Any]) -> None:
    """Check the arguments before obs is read."""
    if mixing is not None:
        check_mixing(mixing)
    check_seconds(seconds)
    for name in (*PUBLISHED, "shuffle"):
        if name in parameters:
            raise PlanError(f"calibrate compares several values of {name}; leave {name}={parameters[name]!r} out")


def _candidates(memory_budget: int | str, mixing: float | None) -> Iterator[Setting]:
    shared = {"memory_budget": memory_budget}
    for multiple in MULTIPLES:
        budget = memory_budget if multiple == 1 else max(1, int(parse_bytes(memory_budget) * multiple))
        yield Setting("own plan", "own plan", {"memory_budget": budget}, requested=multiple == 1 and mixing is None)
    for target in sorted({*TARGETS, *([] if mixing is None else [mixing])}):
        yield Setting(f"mixing={target:g}", "mixing", {"mixing": target, **shared}, requested=target == mixing)
    yield Setting("shuffle=False", "joinid order", {"shuffle": False, **shared})
    yield Setting("published default", "published default", {**PUBLISHED, **shared})


def _plan_all(
    dataset: ExperimentDataset, candidates: Iterator[Setting], label: str | None, progress: bool
) -> list[Setting]:
    """Plan each setting; obs and the label are read once."""
    labels = None if label is None else dataset._engine.factorized(label)
    planned = []
    for setting in progress_bar(progress, iterable=list(candidates), desc="planning", unit=" settings", leave=False):
        try:
            plan = dataset._engine.derive(**{**PLAIN, **setting.parameters}).plan(label, labels)
        except PlanError as error:
            planned.append(replace(setting, impossible=str(error)))
        else:
            planned.append(replace(setting, plan=plan))
    return planned


def _merge(settings: Sequence[Setting]) -> list[Setting]:
    """Merge successive targets of mixing that have the same plan into one setting, the requested one if any."""
    merged: list[Setting] = []
    for setting in settings:
        last = merged[-1] if merged else setting
        if merged and setting.kind == last.kind == "mixing" and setting.plan == last.plan is not None:
            kept = setting if setting.requested else last
            merged[-1] = replace(kept, name=f"{last.name}, {setting.parameters['mixing']:g}")
        else:
            merged.append(setting)
    return merged


def _choose(settings: Sequence[Setting], mixing: float, memory_budget: int | str) -> list[Setting]:
    """Mark the setting that reaches a target with the least decoding; the requested one if none is cheaper."""
    reaching = [
        setting
        for setting in settings
        if setting.plan is not None
        and setting.kind != "published default"
        and setting.parameters["memory_budget"] == memory_budget
        and setting.plan.effective_batch_size >= mixing * setting.plan.batch_size
    ]
    cheapest = min(reaching, key=lambda s: (s.plan.decode_amplification, not s.requested), default=None)  # type: ignore[union-attr]
    if cheapest is None:
        return list(settings)
    return [replace(setting, requested=setting is cheapest) for setting in settings]


def _refuse_small_budget(settings: Sequence[Setting], memory_budget: int | str) -> None:
    """Raise a PlanError if only the published default, which ignores the budget, has a plan."""
    within = [s for s in settings if s.parameters["memory_budget"] == memory_budget and s.kind != "published default"]
    if all(setting.plan is None for setting in within):
        raise PlanError(within[0].impossible)


def _measure_all(
    dataset: ExperimentDataset, settings: Sequence[Setting], seconds: float, progress: bool
) -> list[Setting]:
    """Measure each possible setting with a new dataset, whose memory is free before the next one."""
    possible = [setting for setting in settings if setting.plan is not None]
    next(iter(dataset._with(**{**PLAIN, **possible[0].parameters})), None)  # compiles kernels before the measurements
    measured = []
    for setting in settings:
        if setting.plan is not None:
            derived = dataset._with(**{**PLAIN, **setting.parameters})
            title = f"{setting.name}, {setting.budget}"
            setting = replace(setting, speed=measure(derived, seconds=seconds, progress=progress, title=title))
        measured.append(setting)
    return measured
