"""Encoders: columns of obs in, integer codes out, applied once per selection.

The names and the protocol are those of the published Census loader
(``cellxgene_census.experimental.ml.encoders``, 2024), which took them from scikit-learn.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cellfeed._checks import is_integer, ordered, raising
from cellfeed._joinids import JOINID
from cellfeed.errors import EncodeError
from cellfeed.select.vocabulary import Vocabulary, code_dtype, plain_values


class Encoder(abc.ABC):
    r"""Encodes columns of obs as integers and decodes them. Subclass it to write another encoder.

    A dataset calls :meth:`fit` and :meth:`transform` once, when it is created, each with all selected cells. ``obs``
    has the :attr:`columns` and ``soma_joinid``. If two datasets share an encoder of a subclass, both fit it, and it
    decodes the codes of the second one only: give each dataset its own.

    Examples
    --------
    >>> class AgeEncoder(Encoder):
    ...     name, columns = "age", ("development_stage",)
    ...     def fit(self, obs): ...
    ...     def transform(self, obs):
    ...         return obs["development_stage"].astype(str).str.extract(r"(\d+)")[0].astype(int)
    ...     def inverse_transform(self, codes):
    ...         return np.asarray(codes)
    >>> AgeEncoder().transform(pd.DataFrame({"development_stage": ["65-year-old stage"]})).tolist()
    [65]
    """

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """The key of the encoder in ``dataset.obs_encoders``."""

    @property
    @abc.abstractmethod
    def columns(self) -> Sequence[str]:
        """The columns of obs that the encoder reads."""

    @abc.abstractmethod
    def fit(self, obs: pd.DataFrame) -> None:
        """Learn from the selected cells; ``obs`` has at least the :attr:`columns`."""

    @abc.abstractmethod
    def transform(self, obs: pd.DataFrame) -> npt.ArrayLike:
        """Return one integer code per row of ``obs``."""

    @abc.abstractmethod
    def inverse_transform(self, codes: npt.ArrayLike) -> npt.ArrayLike:
        """Return the values of the codes."""


def encode(encoder: Encoder, frame: pd.DataFrame) -> npt.NDArray[Any]:
    """Return the codes of an encoder in the smallest integer type; fit it first, unless it is fitted.

    A fitted encoder keeps its codes, because another dataset or the user decodes with them. ``obs`` includes
    ``soma_joinid`` if ``frame`` has it, even if the encoder does not list it.
    """
    columns = list(dict.fromkeys(encoder.columns))  # a repeated name would select two columns of the same name
    if JOINID in frame.columns and JOINID not in columns:
        columns.append(JOINID)
    try:
        if not (isinstance(encoder, NamedEncoder) and encoder.is_fitted):
            encoder.fit(frame[columns])
        codes = np.asarray(encoder.transform(frame[columns]))
    except EncodeError:
        raise
    except Exception as cause:
        raise EncodeError(f"encoder {encoder.name!r} failed: {cause!r}") from cause
    if codes.shape != (len(frame),) or (codes.dtype.kind not in "iub" and len(frame)):
        raise EncodeError(
            f"encoder {encoder.name!r}: transform must return one integer per cell, shape ({len(frame)},); "
            f"it returned {codes.dtype} of shape {codes.shape}. The obs of a minibatch is int64: return codes, and "
            f"numbers from inverse_transform"
        )
    if len(codes) == 0:
        return np.empty(0, np.int8)
    low, high = int(codes.min()), int(codes.max())
    if high >= 2**63:
        raise EncodeError(
            f"encoder {encoder.name!r}: transform returned the code {high}; the obs of a minibatch is int64"
        )
    return codes.astype(code_dtype(max(high + 1, -low)), copy=False)


class NamedEncoder(Encoder):
    """An encoder whose name and columns are arguments."""

    def __init__(self, name: str, columns: Sequence[str]) -> None:
        self._name = name
        self._columns = list(columns)

    @property
    def name(self) -> str:
        """The name of the encoder."""
        return self._name

    @property
    def columns(self) -> list[str]:
        """The columns of obs that the encoder reads."""
        return self._columns

    @property
    def is_fitted(self) -> bool:
        """Whether the encoder has codes, which every dataset then uses unchanged."""
        return False


class ClassEncoder(NamedEncoder):
    """Base of encoders with classes: handles values without a class, and decodes.

    ``columns`` maps the expression by which an error names an argument to the name of the column.
    """

    def __init__(self, name: str, columns: Mapping[str, str], handle_unknown: str, unknown_value: int | None) -> None:
        _check_unknown(handle_unknown, unknown_value)
        for argument, value in {**columns, "name": name}.items():
            if not isinstance(value, str) or not value:
                raise EncodeError(f"encoder: {argument}={value!r} must be a name, as text")
        super().__init__(name, list(columns.values()))
        self._unknown_value = unknown_value

    @property
    @abc.abstractmethod
    def classes_(self) -> npt.NDArray[Any]:
        """The decoded classes, by code."""

    def _not_fitted(self) -> EncodeError:
        return EncodeError(f"encoder {self._name!r} has not been fitted; call fit(obs) first")

    def _column(self, obs: pd.DataFrame, column: str) -> pd.Series[Any]:
        if not isinstance(obs, pd.DataFrame):
            raise EncodeError(f"encoder {self._name!r} needs obs as a pandas.DataFrame, not a {type(obs).__name__}")
        if column not in obs.columns:
            raise EncodeError(f"encoder {self._name!r} needs the column {column!r}; obs has {list(obs.columns)}")
        return obs[column]

    def _replace_unknown(
        self, codes: npt.NDArray[Any], values_of: Callable[[npt.NDArray[np.int64]], Any]
    ) -> npt.NDArray[Any]:
        """Replace the code -1 by ``unknown_value``, or raise an error that names the values of those rows."""
        unknown = codes < 0
        if not unknown.any():
            return codes
        if self._unknown_value is None:
            shown = ", ".join(map(repr, list(values_of(np.flatnonzero(unknown)))[:5]))
            raise EncodeError(
                f"encoder {self._name!r} was not fitted on {shown}; fit it on all values, make a new encoder for a "
                f'dataset with other classes, or give handle_unknown="use_encoded_value", unknown_value=<code>'
            )
        return np.where(unknown, np.int64(self._unknown_value), codes.astype(np.int64))

    def inverse_transform(self, codes: npt.ArrayLike) -> npt.NDArray[Any]:
        """Return the classes of integer codes of any shape; a column, shape (n, 1), returns shape (n,)."""
        classes = self.classes_
        with raising(EncodeError, f"encoder {self._name!r}: codes must be integers in an array"):
            index = np.asarray(codes)
        if index.ndim == 2 and index.shape[1] == 1:  # an obs of one column, as scikit-learn's encoders take it
            index = index[:, 0]
        if index.size and (index.dtype.kind not in "iu" or index.min() < 0 or index.max() >= len(classes)):
            got = f", from {index.min()} to {index.max()}" if index.dtype.kind in "iuf" else ""
            raise EncodeError(
                f"encoder {self._name!r}: codes must be integers from 0 to {len(classes) - 1}, got {index.dtype}{got}"
            )
        return classes[index.astype(np.int64)]  # type: ignore[no-any-return,unused-ignore]


def _check_unknown(handle_unknown: str, unknown_value: int | None) -> None:
    if not isinstance(handle_unknown, str) or handle_unknown not in ("error", "use_encoded_value"):
        raise EncodeError(f'handle_unknown={handle_unknown!r} must be "error" or "use_encoded_value"')
    if handle_unknown == "error":
        if unknown_value is not None:
            raise EncodeError(f'unknown_value={unknown_value!r} needs handle_unknown="use_encoded_value"')
    elif not is_integer(unknown_value) or not -(2**63) <= unknown_value < 2**63:
        raise EncodeError(
            f'unknown_value={unknown_value!r} must be an integer of 64 bits, with handle_unknown="use_encoded_value"'
        )


def one_of(encoder: str, **named: Any) -> Any:
    """Return the argument that was given under one of its two names."""
    given = [value for value in named.values() if value is not None]
    if len(given) != 1:
        names = list(named)
        raise EncodeError(f"{encoder} takes {names[0]}= or, by its published name, {names[1]}=: give one of them")
    return given[0]


class LabelEncoder(ClassEncoder):
    """Encodes the K distinct values of a column as 0..K-1, in ascending order.

    A missing value (null, NaN) is a class of its own, the last, which decodes to ``None``. With
    ``handle_unknown="use_encoded_value"`` it has the code ``unknown_value`` instead. Datasets that share an encoder
    share the classes of the first one.

    Parameters
    ----------
    column
        A column of obs: text, categories, numbers or booleans.
    name
        The name of the encoder; by default the name of the column.
    handle_unknown
        What :meth:`transform` does with values that are not in :attr:`classes_`: ``"error"`` raises an
        :class:`EncodeError`; ``"use_encoded_value"`` returns ``unknown_value``, also for missing values.
    unknown_value
        The code for ``handle_unknown="use_encoded_value"``. With -100, PyTorch's losses ignore cells without a label
        (``ignore_index``).
    classes
        The values by code, if they are known, such as those of a trained model; :meth:`fit` then does nothing.
        ``None`` as the last of them is the missing value.
    col
        The name of ``column`` in ``cellxgene_census.experimental.ml``.

    Examples
    --------
    >>> encoder = LabelEncoder("cell_type")
    >>> encoder.fit(pd.DataFrame({"cell_type": ["T cell", "B cell", "T cell"]}))
    >>> encoder.classes_.tolist()
    ['B cell', 'T cell']
    >>> encoder.inverse_transform([1, 0]).tolist()
    ['T cell', 'B cell']
    """

    def __init__(
        self,
        column: str | None = None,
        *,
        name: str | None = None,
        handle_unknown: str = "error",
        unknown_value: int | None = None,
        classes: Sequence[Any] | npt.NDArray[Any] | None = None,
        col: str | None = None,
    ) -> None:
        column = one_of("LabelEncoder", column=column, col=col)
        super().__init__(column if name is None else name, {"column": column}, handle_unknown, unknown_value)
        self._is_fixed = classes is not None
        self._vocabulary: Vocabulary | None = None
        if classes is not None:
            values = plain_values(ordered("classes", classes, EncodeError))
            self._vocabulary = Vocabulary.of(values)
            if len(set(values)) != len(values) or None in values[:-1]:
                raise EncodeError(f"classes={values!r} must be distinct, and None must be the last")

    @property
    def col(self) -> str:
        """The column of obs."""
        return self._columns[0]

    @property
    def classes_(self) -> npt.NDArray[Any]:
        """The distinct values, by code."""
        return self._fitted().values

    @property
    def is_fitted(self) -> bool:
        """Whether the encoder has classes: the argument ``classes``, or those of the first dataset."""
        return self._vocabulary is not None

    @property
    def learns_missing(self) -> bool:
        """Whether :meth:`fit` made a class of the missing values."""
        return not self._is_fixed and self._fitted().has_missing

    def _fitted(self) -> Vocabulary:
        if self._vocabulary is None:
            raise self._not_fitted()
        return self._vocabulary

    def fit(self, obs: pd.DataFrame) -> None:
        """Learn the distinct values of the column, unless ``classes`` were given."""
        if self._is_fixed:
            return
        column = self._column(obs, self.col)
        with raising(EncodeError, f"encoder {self._name!r} cannot sort the values of its column"):
            self._vocabulary = Vocabulary(column, with_missing=self._unknown_value is None)

    def transform(self, obs: pd.DataFrame) -> npt.NDArray[Any]:
        """Return one code per row; ``handle_unknown`` decides on values without a class."""
        column = self._column(obs, self.col)
        codes = self._fitted().codes(column)
        return self._replace_unknown(codes, lambda rows: column.iloc[rows].unique())
