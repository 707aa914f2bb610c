"""Resamples a dataset; see :meth:`cellfeed.ExperimentDataset.resample`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from cellfeed._checks import is_integer, is_number
from cellfeed.errors import PlanError, SelectionError
from cellfeed.loader.engine import Engine
from cellfeed.plan.budget import smallest_budget
from cellfeed.plan.planner import Planner
from cellfeed.plan.resampling import Resampling, capped, expected_copies
from cellfeed.plan.settings import MAX_CELLS
from cellfeed.select.labels import read_obs_column

MAX_BUDGET = 1 << 50

Codes = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def resample(
    engine: Engine,
    balance: str | Sequence[str] | None,
    weights: Any,
    max_per_label: Mapping[str, int] | None,
    temperature: float,
    n_obs: int | None,
) -> Engine:
    """Return an engine whose cells come as often as the arguments say."""
    engine.refuse_resampled("resample")
    columns = [balance] if isinstance(balance, str) else list(balance or ())
    _check(engine, columns, weights, max_per_label, temperature, n_obs)
    labels_of = cache(engine.labels)  # a column may balance and cap
    labels = _joint_labels(labels_of, engine.selection.n_obs, columns) if columns else None
    cap_column, cap = next(iter((max_per_label or {}).items()), (None, None))
    n_wanted = float(n_obs or engine.selection.n_obs)
    expected = expected_copies(_weights(engine, weights), labels, temperature, n_wanted)
    strata = np.zeros(len(expected), np.int64) if labels is None else labels
    if cap_column is not None and cap is not None:
        limited = labels_of(cap_column)
        expected = capped(expected, limited, cap, n_obs)
        strata = limited * (int(strata.max()) + 1) + strata
    n_drawn = n_obs or max(1, round(float(expected.sum())))
    record = {
        "balance": columns or None,
        "weights": weights if weights is None or isinstance(weights, str) else "array",
        "max_per_label": dict(max_per_label) if max_per_label else None,
        "temperature": float(temperature),
        "n_obs": n_drawn,
    }
    resampling = Resampling(expected * (n_drawn / expected.sum()), strata, n_drawn, record)
    resampled = engine.derive(resampling=resampling)
    _check_copies(resampled, columns, temperature)
    return resampled


def _check(engine: Engine, columns: list[str], weights: Any, max_per_label: Any, temperature: Any, n_obs: Any) -> None:
    if not columns and weights is None and not max_per_label and n_obs is None:
        raise PlanError('resample() changes nothing: give balance="cell_type", weights=, max_per_label= or n_obs=')
    if not engine.settings.shuffle:
        raise PlanError("resample() of a dataset with shuffle=False: copies of a cell would be neighbours; shuffle it")
    if not is_number(temperature) or not 0 <= temperature <= 1:
        raise PlanError(
            f"temperature={temperature!r} must be from 0, where all labels have the same share, to 1, where they have "
            f"the shares of their cells"
        )
    if temperature != 0 and not columns:
        raise PlanError(f'temperature={temperature!r} needs balance=, the column of the labels: balance="cell_type"')
    if n_obs is not None and (not is_integer(n_obs) or not 1 <= n_obs <= MAX_CELLS):
        raise PlanError(f"n_obs={n_obs!r} must be an integer of at least 1, and less than 2**31: the cells of an epoch")
    if max_per_label is None:
        return
    if not isinstance(max_per_label, Mapping) or len(max_per_label) != 1:
        raise PlanError(f'max_per_label={max_per_label!r} must name one column: max_per_label={{"cell_type": 10_000}}')
    for column, cap in max_per_label.items():
        if not is_integer(cap) or cap < 1:
            raise PlanError(f"max_per_label={{{column!r}: {cap!r}}} must be an integer of at least 1: cells per label")


def _joint_labels(labels_of: Callable[[str], Codes], n_obs: int, columns: Sequence[str]) -> Codes:
    """Return the labels of one or several columns together, as codes: int64, shape (n_obs,)."""
    joint = np.zeros(n_obs, np.int64)
    for column in columns:
        codes = labels_of(column)
        joint = np.unique(joint * (int(codes.max(initial=0)) + 1) + codes, return_inverse=True)[1]
    if joint.max(initial=0) == 0:
        raise PlanError(f"balance={_shown(columns)}: all cells have the same label, so there is nothing to balance")
    return joint


def _weights(engine: Engine, weights: Any) -> Floats:
    """Return the weight of each cell: float64, shape (n_obs,)."""
    selection = engine.selection
    if weights is None:
        return np.ones(selection.n_obs)
    shown = f"weights={weights!r}" if isinstance(weights, str) else "weights"
    values = read_obs_column(selection, weights) if isinstance(weights, str) else weights
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as cause:
        raise SelectionError(f"{shown} must be numbers, one per cell: {cause}") from cause
    if numbers.shape != (selection.n_obs,):
        raise SelectionError(
            f"{shown} of shape {numbers.shape} must have one number per cell, in the order of dataset.obs_joinids: "
            f"shape ({selection.n_obs},)"
        )
    wrong = np.flatnonzero(~(np.isfinite(numbers) & (numbers >= 0)))
    if len(wrong):
        raise SelectionError(
            f"{shown}: {len(wrong):,} weights are negative, missing or infinite; the first is {numbers[wrong[0]]} of "
            f"soma_joinid {selection.joinid_column[wrong[:1]][0]}. Give numbers of at least 0; 0 leaves a cell out"
        )
    if numbers.sum() == 0:
        raise SelectionError(f"{shown}: all weights are 0, so no cell would come; give some a positive weight")
    return numbers


def _check_copies(engine: Engine, columns: list[str], temperature: float) -> None:
    """Refuse a cell with more copies than minibatches in which they can leave: a minibatch has a cell once."""
    resampling, settings = engine.resampling, engine.settings
    assert resampling is not None
    most = int(np.argmax(resampling.expected))
    n_copies = float(resampling.expected[most])
    most_possible = engine.media.source.planner.max_copies
    if n_copies <= most_possible:
        return
    ways = [f"batch_size={max(1, int(most_possible * settings.batch_size / n_copies))}"]
    if _max_copies(engine, MAX_BUDGET) >= n_copies:
        ways.append(f"memory_budget={smallest_budget(lambda n_bytes: _max_copies(engine, n_bytes) >= n_copies)!r}")
    if columns:
        codes, values = engine.factorized(columns[0])
        cell = f"a cell of the label {values[codes[most]]!r}"
        ways.append(f"a temperature above {temperature:g}")
    else:
        cell = f"the cell with soma_joinid {engine.selection.joinid_column[most : most + 1][0]}"
    raise PlanError(
        f"resample(): {cell} would come {n_copies:,.1f} times in an epoch, and memory keeps at most {most_possible:,} "
        f"copies in different minibatches of {settings.batch_size:,} cells; give {' or '.join(ways)}"
    )


def _max_copies(engine: Engine, n_bytes: int) -> int:
    settings = engine.settings.replace(memory_budget=n_bytes)
    try:
        return Planner(engine.selection, settings, resampling=engine.resampling).max_copies
    except PlanError:  # the budget is too small for one chunk
        return 0


def _shown(columns: Sequence[str]) -> str:
    return repr(columns[0]) if len(columns) == 1 else repr(list(columns))
