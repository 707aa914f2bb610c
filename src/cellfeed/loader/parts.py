"""Parts of the cells of a dataset: by the values of a column, and for cross-validation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cellfeed._checks import ordered
from cellfeed._joinids import IntArray
from cellfeed.errors import PlanError
from cellfeed.loader.engine import Engine
from cellfeed.plan.folds import all_but, cells_of_labels, fold_cells, parts_of_labels
from cellfeed.plan.permutation import check_seed
from cellfeed.select.labels import read_labels
from cellfeed.select.vocabulary import plain_values


def split_by(engine: Engine, column: str, parts: Mapping[Any, Sequence[Any] | None] | None) -> dict[Any, Engine]:
    """Return an engine per part; see :meth:`cellfeed.ExperimentDataset.split_by`."""
    engine.refuse_resampled("split_by")
    vocabulary, codes = read_labels(engine.selection, column)
    labels = vocabulary.values.tolist()
    if parts is None:
        if None in labels:
            raise PlanError(
                f"{(codes == len(labels) - 1).sum()} of {len(codes)} cells have no value of {column!r}; name the part "
                f"of each value, and list None as the value of these cells: parts={{..., 'others': [None]}}"
            )
        parts = {label: [label] for label in labels}
    elif not isinstance(parts, Mapping) or not parts:
        raise PlanError(f"parts={parts!r} must be a dict of lists of values, by the name of the part")
    listed = {
        name: None if values is None else plain_values(ordered(f"parts[{name!r}]", values, PlanError))
        for name, values in parts.items()
    }
    cells = cells_of_labels(parts_of_labels(labels, listed, column)[codes], len(listed))
    return {
        name: _take(engine, positions, {"column": column, "values": values, "part": name})
        for (name, values), positions in zip(listed.items(), cells, strict=True)
    }


def folds(
    engine: Engine, k: int, seed: int, *, stratify: str | None, group: str | None
) -> Iterator[tuple[Engine, Engine]]:
    """Return the training and the test part of each fold; see :meth:`cellfeed.ExperimentDataset.folds`."""
    engine.refuse_resampled("folds")
    tests = fold_cells(
        engine.selection.n_obs,
        k,
        check_seed(seed),
        strata=None if stratify is None else engine.labels(stratify),
        groups=None if group is None else engine.labels(group),
    )
    record = {"folds": int(k), "seed": int(seed), "stratify": stratify, "group": group}
    return (_train_and_test(engine, test, {**record, "fold": fold}) for fold, test in enumerate(tests))


def leave_one_out(engine: Engine, group: str) -> Iterator[tuple[Any, Engine, Engine]]:
    """Return each group with the parts without it and of it; see :meth:`cellfeed.ExperimentDataset.leave_one_out`."""
    engine.refuse_resampled("leave_one_out")
    vocabulary, codes = read_labels(engine.selection, group)
    labels = vocabulary.values.tolist()
    if len(labels) < 2:
        raise PlanError(f"group={group!r} has {len(labels)} distinct value, so that no cells are left for training")
    tests = cells_of_labels(codes, len(labels))
    return (
        (label, *_train_and_test(engine, test, {"leave_one_out": group, "value": label}))
        for label, test in zip(labels, tests, strict=True)
    )


def _train_and_test(engine: Engine, test: IntArray, record: Mapping[str, Any]) -> tuple[Engine, Engine]:
    train = all_but(test, engine.selection.n_obs)
    return _take(engine, train, {**record, "part": "train"}), _take(engine, test, {**record, "part": "test"})


def _take(engine: Engine, positions: IntArray, record: Mapping[str, Any]) -> Engine:
    return engine.derive(selection=engine.selection.take(positions, record))
