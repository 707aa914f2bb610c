"""What a minibatch has beside X and obs: the names that a user gives, and numeric columns of obs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from cellfeed._checks import abbreviate, check_name, ordered, repeated, suggest, warn_user
from cellfeed._joinids import JOINID
from cellfeed.errors import SelectionError


@dataclass(frozen=True)
class Content:
    """The further content of minibatches; see :class:`cellfeed.ExperimentDataset` for the fields.

    Attributes
    ----------
    layers, obsm, obs_values
        Names of layers, of embeddings and of columns of obs.
    measurements
        The layer of each further measurement.
    memory_budget
        Bytes of which embeddings may take half.

    Examples
    --------
    >>> print(Content.from_arguments(layers=["normalized"], obs_values=["age"]))
    layers normalized; obs_values age
    """

    layers: tuple[str, ...] = ()
    obsm: tuple[str, ...] = ()
    obs_values: tuple[str, ...] = ()
    measurements: Mapping[str, str] = field(default_factory=dict)
    memory_budget: int = 0

    @classmethod
    def from_arguments(
        cls,
        layers: Sequence[str] = (),
        obsm: Sequence[str] = (),
        obs_values: Sequence[str] = (),
        measurements: Mapping[str, str] | None = None,
        *,
        memory_budget: int = 0,
    ) -> Self:
        """Make the content of arguments of a dataset; raise a SelectionError if they are invalid."""
        measurements = {} if measurements is None else measurements
        if not isinstance(measurements, Mapping):
            raise SelectionError(
                f"measurements={measurements!r} must be a dict of layers by measurement: "
                f'measurements={{"protein": "raw"}}'
            )
        for name, layer in measurements.items():
            check_name("measurements: a measurement", name)
            check_name(f"measurements: the layer of {name!r}", layer)
        return cls(
            _distinct("layers", layers), _distinct("obsm", obsm), _distinct("obs_values", obs_values),
            dict(measurements), memory_budget,
        )  # fmt: skip

    def __bool__(self) -> bool:
        return bool(self.layers or self.obsm or self.obs_values or self.measurements)

    def __str__(self) -> str:
        names = {"layers": self.layers, "obsm": self.obsm, "obs_values": self.obs_values}
        shown = [
            f"{kind} {', '.join(own)}" for kind, own in {**names, "measurements": self.measurements}.items() if own
        ]
        return "; ".join(shown)

    def needed(self, known: Collection[str]) -> list[str]:
        """Return the columns of obs that are needed; a column that is not known is an error."""
        for column in self.obs_values:
            if column == JOINID:
                raise SelectionError(
                    f"obs_values: {JOINID!r} would lose digits as float32; give joinids=True, which returns it as int64"
                )
            if column not in known:
                raise SelectionError(f"obs_values: obs has no column {column!r}; {suggest(column, known)}")
        return list(self.obs_values)

    def numbers(self, frame: pd.DataFrame) -> npt.NDArray[np.float32] | None:
        """Return the needed columns of a frame of cells: float32, shape (n_obs, k); ``None`` without such columns.

        A missing value is NaN, and a warning has the number of missing values.

        Raises
        ------
        SelectionError
            If a column holds something else than numbers, or a number beyond float32.
        """
        if not self.obs_values:
            return None
        return np.stack([_numbers(name, frame[name]) for name in self.obs_values], axis=1)


NOTHING_MORE = Content()
"""Minibatches of X and obs."""


def _distinct(argument: str, names: Any) -> tuple[str, ...]:
    listed = ordered(argument, names)
    for name in listed:
        check_name(f"{argument}: a name", name)
    if again := repeated(listed):
        raise SelectionError(f"{argument}={listed!r} holds {again[0]!r} more than once; give each name once")
    return tuple(listed)


def _numbers(name: str, column: pd.Series[Any]) -> npt.NDArray[np.float32]:
    """Return a column as float32, with NaN for missing values."""
    if len(column) == 0:
        return np.empty(0, np.float32)
    codes = column.cat.codes.to_numpy() if isinstance(column.dtype, pd.CategoricalDtype) else None
    values = column if codes is None else pd.Series(column.cat.categories)
    if not (pd.api.types.is_numeric_dtype(values.dtype) or pd.api.types.is_bool_dtype(values.dtype)):
        raise _not_numbers(name, values)
    wide = values.to_numpy(np.float64, na_value=np.nan)
    if codes is not None:
        wide = np.append(wide, np.nan)[codes]  # -1 is the code of missing values
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.float32)
    beyond = np.isfinite(wide) & ~np.isfinite(narrow)
    if beyond.any():
        raise SelectionError(
            f"obs_values: column {name!r} holds {wide[beyond][0]:g}, which float32 cannot hold; scale the column in obs"
        )
    if n_missing := int(np.isnan(narrow).sum()):
        warn_user(
            f"obs_values: column {name!r} has no value for {n_missing:,} of {len(column):,} cells, which are NaN; "
            f"exclude them by obs_query, or replace them: torch.nan_to_num(minibatch.obs_values)"
        )
    return narrow


def _not_numbers(name: str, values: pd.Series[Any]) -> SelectionError:
    distinct = values.dropna().unique().tolist()
    is_text = pd.api.types.is_object_dtype(values.dtype) or pd.api.types.is_string_dtype(values.dtype)
    kind = "text" if is_text else f"values of type {values.dtype}"
    return SelectionError(
        f"obs_values: column {name!r} holds {kind} ({abbreviate(distinct) or 'no values'}), not numbers; "
        f"obs_column_names=[{name!r}] returns its values as codes"
    )
