"""The arguments of :meth:`cellfeed.ExperimentDataset.group_batches`, checked, and the sets that they describe."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from cellfeed._checks import abbreviate, check_choice, check_name, ordered, repeated
from cellfeed._joinids import IntArray
from cellfeed.errors import PlanError, SelectionError
from cellfeed.loader.engine import Engine
from cellfeed.loader.tokenizing import refuse_tokens
from cellfeed.plan.sets import SetPlan, SetRemainder, Shortage
from cellfeed.plan.settings import check_size
from cellfeed.select.encoders import ClassEncoder, LabelEncoder, encode
from cellfeed.select.labels import read_obs_column
from cellfeed.select.selection import Selection

FEW_CONTROLS = ("error", "repeat", "drop")
"""What becomes of cells whose stratum has too few controls."""


@dataclass(frozen=True, kw_only=True)
class SetArguments:
    """The arguments of ``group_batches``.

    Examples
    --------
    >>> SetArguments.check("phase", 4, "G1", None, None, "pad", "error", batch_size=128).sets_per_batch
    32
    """

    by: list[str]
    set_size: int
    control: Any
    match: list[str]
    sets_per_batch: int
    remainder: SetRemainder
    few_controls: str

    @classmethod
    def check(
        cls,
        by: Any,
        set_size: Any,
        control: Any,
        match: Any,
        sets_per_batch: Any,
        remainder: Any,
        few_controls: Any,
        *,
        batch_size: int,
    ) -> SetArguments:
        """Make the arguments of what the user gave; ``batch_size`` cells are in a minibatch by default."""
        by = _columns("by", by)
        match = by[:-1] if match is None else _columns("match", match)
        if not by:
            raise PlanError('by=[] must name columns of obs, the perturbation last: by=["cell_type", "perturbation"]')
        if by[-1] in match:
            raise PlanError(
                f"match={match!r} has the last column of by={by!r}, in which controls differ from other cells; give "
                f"match={[column for column in match if column != by[-1]]!r}"
            )
        check_size("set_size", set_size)
        sets_per_batch = max(1, batch_size // set_size) if sets_per_batch is None else sets_per_batch
        check_size("sets_per_batch", sets_per_batch)
        for name, value, choices in (
            ("remainder", remainder, get_args(SetRemainder)),
            ("few_controls", few_controls, FEW_CONTROLS),
        ):
            check_choice(name, value, choices)
        return cls(
            by=by, set_size=int(set_size), control=control, match=match, sets_per_batch=int(sets_per_batch),
            remainder=remainder, few_controls=few_controls,
        )  # fmt: skip


def _columns(argument: str, columns: Any) -> list[Any]:
    names = [columns] if isinstance(columns, str) else ordered(argument, columns)
    for name in names:
        check_name(f"{argument}: a column of obs", name)
    if again := repeated(names):
        raise PlanError(f"{argument}={names!r} has {again[0]!r} twice; give each column once")
    return names


def refuse_content(engine: Engine) -> None:
    """Raise an error for a dataset whose minibatches are not a dense X of the genes."""
    engine.refuse_resampled("group_batches")
    refuse_tokens(engine.settings, "group_batches")
    selection = engine.selection
    if engine.settings.return_sparse_X:
        raise PlanError("group_batches() of a dataset with return_sparse_X=True: sets are dense; leave it out")
    if selection.content or selection.measured is not None:
        raise PlanError(
            "group_batches() yields X only, and the dataset has layers, obsm, obs_values, measurements or measured, "
            "too; make a dataset without them, and take their values by joinids=True"
        )


@dataclass(frozen=True, eq=False)
class Groups:
    """The cells that sets are made of.

    Attributes
    ----------
    selection
        The cells of the sets and their controls.
    plan
        Divides them into sets.
    codes
        int64, shape (n_groups, n_columns): the codes of each group.
    encoders
        The encoders of the columns ``by``, in their order.
    """

    selection: Selection
    plan: SetPlan
    codes: IntArray
    encoders: dict[str, ClassEncoder]


def find_groups(engine: Engine, arguments: SetArguments) -> Groups:
    """Read the labels of the cells, and return the groups and strata that they form."""
    by, match, selection = arguments.by, arguments.match, engine.selection
    columns = {column: _read_codes(selection, column) for column in dict.fromkeys([*by, *match])}
    encoders = {column: columns[column][0] for column in by}
    code = _control_code(arguments, encoders[by[-1]])
    is_control = _have_labels([columns[column][1] for column in [by[-1], *match]]) & (columns[by[-1]][1] == code)
    is_perturbed = _have_labels([codes for _, codes in columns.values()]) & (columns[by[-1]][1] != code)
    _check_cells(arguments, is_perturbed, is_control)
    strata = _joined([columns[column][1] for column in match], selection.n_obs)
    groups = np.full(selection.n_obs, -1)
    joint = _joined([columns[column][1] for column in by], selection.n_obs)[is_perturbed]
    _, first, groups[is_perturbed] = np.unique(joint, return_index=True, return_inverse=True)
    table = np.stack([columns[column][1][is_perturbed][first] for column in by], axis=1)
    settings = engine.settings
    plan = SetPlan(groups, strata, is_control, arguments.set_size, settings.seed, arguments.remainder, settings.shuffle)
    plan = _with_enough_controls(plan, arguments, columns)
    is_used = (plan.groups >= 0) | (is_control & np.isin(strata, strata[plan.groups >= 0]))
    used = np.flatnonzero(is_used)
    own = replace(plan, groups=plan.groups[used], strata=strata[used], is_control=is_control[used])
    if own.n_sets == 0:
        raise PlanError(
            f'group_batches(set_size={arguments.set_size}, remainder="drop"): no group has {arguments.set_size} cells, '
            f'the largest has {np.bincount(groups[is_perturbed]).max()}; give a smaller set_size, or remainder="pad"'
        )
    return Groups(selection.take(used), own, table, encoders)


def _read_codes(selection: Selection, column: str) -> tuple[ClassEncoder, IntArray]:
    """Return the encoder of a column, that of the dataset if it has one, and the code of each cell."""
    encoder = selection.encoders.get(column)
    if isinstance(encoder, ClassEncoder):
        return encoder, np.asarray(selection.codes[column], dtype=np.int64)
    encoder = LabelEncoder(column)
    frame = pd.DataFrame({column: read_obs_column(selection, column)})
    return encoder, encode(encoder, frame).astype(np.int64)


def _have_labels(columns: Sequence[IntArray]) -> npt.NDArray[np.bool_]:
    """Return whether each cell has a class in all columns: bool, shape (n_obs,)."""
    have: npt.NDArray[np.bool_] = np.min(columns, axis=0) >= 0
    return have


def _control_code(arguments: SetArguments, encoder: ClassEncoder) -> int:
    labels, control = encoder.classes_.tolist(), arguments.control
    if control in labels:
        return int(labels.index(control))
    texts = [str(label) for label in labels]
    nearest = difflib.get_close_matches(str(control), texts, n=3, cutoff=0.5)
    guess = f"the nearest are {', '.join(map(repr, nearest))}" if nearest else f"there are {abbreviate(labels)}"
    raise SelectionError(
        f"control={control!r} is not a label of the column {arguments.by[-1]!r}, the last of by=; {guess}"
    )


def _check_cells(arguments: SetArguments, is_perturbed: Any, is_control: Any) -> None:
    """Refuse cells that are all controls, or of which none is a control."""
    column, control = arguments.by[-1], arguments.control
    if not is_control.any():
        raise PlanError(
            f"control={control!r}: no cell of the dataset has this label in the column {column!r}; select cells that "
            f"have it (obs_query), or split so that each part has controls"
        )
    if not is_perturbed.any():
        raise PlanError(
            f"control={control!r}: all cells of the dataset have this label in the column {column!r}, so there are no "
            f"perturbed cells; select cells that have other labels, too"
        )


def _joined(columns: Sequence[IntArray], n_obs: int) -> IntArray:
    """Return one number per cell, ascending with the codes of the columns: int64, shape (n_obs,)."""
    joint = np.zeros(n_obs, np.int64)
    for codes in columns:
        joint = np.unique(joint * (int(codes.max()) + 1) + np.maximum(codes, 0), return_inverse=True)[1]
    return joint


def _with_enough_controls(plan: SetPlan, arguments: SetArguments, columns: Any) -> SetPlan:
    """Return the plan of the cells that have enough controls, or raise an error, as ``few_controls`` says."""
    shortages = plan.shortages()
    if arguments.few_controls == "repeat":
        shortages = [shortage for shortage in shortages if not shortage.n_controls]
    if not shortages:
        return plan
    if arguments.few_controls == "drop":
        kept = plan.without(np.array([shortage.stratum for shortage in shortages]))
        if (kept.groups >= 0).any():
            return kept
    raise PlanError(_shortage_message(shortages, plan, arguments, columns))


def _shortage_message(shortages: list[Shortage], plan: SetPlan, arguments: SetArguments, columns: Any) -> str:
    worst = shortages[0]
    cell = int(np.argmax(plan.strata == worst.stratum))
    labels = [f"{column}={columns[column][0].classes_[columns[column][1][cell]]!r}" for column in arguments.match]
    where = f"with {', '.join(labels)}" if labels else "in the dataset"
    others = f"; and for {len(shortages) - 1:,} other combinations" if len(shortages) > 1 else ""
    ways = ["fewer columns in match=", "a smaller set_size"]
    if arguments.few_controls == "error":
        ways.insert(0, 'few_controls="drop" to leave out the cells of such combinations')
        if worst.n_controls:
            ways.insert(0, 'few_controls="repeat" to use a control several times in a set')
    return (
        f"group_batches(match={arguments.match!r}): a set needs up to {worst.n_needed:,} different controls {where}, "
        f"and {worst.n_controls:,} cells there have control={arguments.control!r}{others}; give {', or '.join(ways)}"
    )
