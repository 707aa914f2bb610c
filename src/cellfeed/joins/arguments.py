"""The arguments of ``join``, and what must be equal in its datasets: checked before anything is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import lcm
from typing import Any

import cloudpickle
import numpy as np

from cellfeed._checks import is_integer, is_number, missing_from, suggest
from cellfeed.errors import PlanError
from cellfeed.loader.dataset import ExperimentDataset
from cellfeed.loader.engine import Engine
from cellfeed.tokens import Tokenizer
from cellfeed.transforms import SelectGenes, steps_of

LENGTHS = ("longest", "shortest")

DENOMINATOR = 10**9
"""Shares are rounded to multiples of its inverse, unless they are simple fractions: 0.1 stands for a tenth."""

Engines = Mapping[str, Engine]


def check_datasets(datasets: Any) -> Mapping[str, ExperimentDataset]:
    """Check that there are two or more datasets with cells, by name."""
    if not isinstance(datasets, Mapping) or len(datasets) < 2:
        found = f"{len(datasets)}" if isinstance(datasets, Mapping) else f"a {type(datasets).__name__}"
        raise PlanError(f'join takes two or more datasets by name, not {found}: join({{"human": a, "mouse": b}})')
    for name, dataset in datasets.items():
        if not isinstance(name, str) or not name:
            raise PlanError(f"datasets: the name {name!r} must be text")
        if not isinstance(dataset, ExperimentDataset):
            raise PlanError(
                f"datasets[{name!r}] is a {type(dataset).__name__}; join takes objects of ExperimentDataset"
            )
        if not dataset.shape[0]:
            raise PlanError(f"datasets[{name!r}] has no cells; leave it out")
    return datasets


def check_shares(shares: Any, names: Sequence[str]) -> tuple[int, ...]:
    """Return the shares as integers in proportion to them."""
    if not isinstance(shares, Mapping) or set(shares) != set(names):
        even = {name: round(1 / len(names), 3) for name in names}
        raise PlanError(f"shares={shares!r} must have a share for each dataset: shares={even}")
    values = [shares[name] for name in names]
    if not all(is_number(value) and 1 / DENOMINATOR <= value < 1 for value in values):
        raise PlanError(f"shares={dict(shares)} must be numbers above 0 and below 1; leave a dataset without cells out")
    if abs(sum(values) - 1) > 1e-6:
        raise PlanError(f"shares={dict(shares)} sum to {sum(values):.6g}; they must sum to 1")
    fractions = [Fraction(value).limit_denominator(1000) for value in values]
    if sum(fractions) != 1 or any(abs(float(f) - v) > 1e-9 for f, v in zip(fractions, values, strict=True)):
        fractions = [Fraction(round(value * DENOMINATOR), DENOMINATOR) for value in values]
    common = lcm(*(fraction.denominator for fraction in fractions))
    return tuple(int(fraction * common) for fraction in fractions)


def check_length(length: Any) -> None:
    """Check the length of an epoch."""
    is_name = isinstance(length, str) and length in LENGTHS
    if not is_name and not (is_integer(length) and 1 <= length < 1 << 40):
        raise PlanError(f'epoch_length={length!r} must be "longest", "shortest", or a number of minibatches')


def check_orthologs(orthologs: Any, names: Sequence[str]) -> Mapping[str, Mapping[str, str]]:
    """Return the tables of names, none by default."""
    orthologs = {} if orthologs is None else orthologs
    if not isinstance(orthologs, Mapping) or not all(isinstance(table, Mapping) for table in orthologs.values()):
        raise PlanError(
            f"orthologs is a {type(orthologs).__name__}; it must be a dict of names by dataset: "
            f'orthologs={{{names[-1]!r}: {{"Cd3d": "CD3D"}}}}'
        )
    _check_keys("orthologs", orthologs, names)
    for dataset, table in orthologs.items():
        for own, name in table.items():
            if not isinstance(name, str) or not name:
                raise PlanError(f"orthologs[{dataset!r}][{own!r}]={name!r} must be a name; leave out genes without one")
    return orthologs


def check_var_column(var_column: Any, names: Sequence[str]) -> Mapping[str, str | None]:
    """Return the column of var that names genes, by dataset."""
    if not isinstance(var_column, Mapping):
        return dict.fromkeys(names, var_column)
    _check_keys("var_column", var_column, names)
    return var_column


def _check_keys(argument: str, given: Mapping[Any, Any], names: Sequence[str]) -> None:
    """Check that an argument is by the names of datasets; it may lack some."""
    unknown = missing_from(list(given), names)
    if unknown:
        raise PlanError(f"{argument} has {unknown[0]!r}, which is not a dataset; {suggest(str(unknown[0]), names)}")


def check_alike(engines: Engines) -> None:
    """Raise a PlanError if minibatches of the datasets differ in another way than their genes and columns of obs."""
    names = list(engines)
    figures = [_figures(engine) for engine in engines.values()]
    for name, own in zip(names[1:], figures[1:], strict=True):
        for argument, value in own.items():
            if value != figures[0][argument]:
                raise PlanError(
                    f"{names[0]!r} has {argument}={figures[0][argument]!r}, and {name!r} has {argument}={value!r}; "
                    f"make the datasets of a join with the same {argument}"
                )
    if figures[0]["measurements"]:
        raise PlanError(
            f"{names[0]!r} has measurements={figures[0]['measurements']!r}, whose genes a join does not align; leave "
            f"measurements= out"
        )
    if figures[0]["rank_remainder"] == "uneven":
        raise PlanError(
            'rank_remainder="uneven" gives ranks unequal numbers of minibatches; make the datasets of a join with '
            '"drop" or "pad"'
        )


def _figures(engine: Engine) -> dict[str, Any]:
    """Return by name what must be equal in all datasets."""
    settings, content = engine.settings, engine.selection.content
    same = ("batch_size", "drop_last", "return_sparse_X", "joinids", "rank_remainder", "rank", "world_size")
    return {
        "X_dtype": engine.X_dtype,
        **{name: getattr(settings, name) for name in same},
        **{name: list(getattr(content, name)) for name in ("layers", "obsm", "obs_values", "measurements")},
        "measured": engine.selection.measured is not None,
    }


def the_transform(engines: Engines) -> Any:
    """Return the transform of all datasets, which must be the same."""
    name = next(iter(engines))
    transform = engines[name].settings.transform
    for other, engine in engines.items():
        own = engine.settings.transform
        if any(isinstance(step, SelectGenes) for step in steps_of(own)):
            raise PlanError(f"the transform of {other!r} selects genes of it; select those of the join by genes=")
        if own is not transform and _pickled(own) != _pickled(transform):
            raise PlanError(
                f"{name!r} has transform={transform!r}, and {other!r} has transform={own!r}; make the datasets of a "
                f"join with the same transform, or without one, and give it to join(..., transform=)"
            )
    return transform


def _pickled(transform: Any) -> bytes:
    """Return the parameters of a transform; those of a tokenizer do not depend on the genes of its dataset."""
    if isinstance(transform, Tokenizer):
        transform = transform._of_genes(np.array([], object), 0)
    pickled: bytes = cloudpickle.dumps(transform)
    return pickled
