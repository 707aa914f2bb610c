"""Encoders: columns of obs in, integer codes out, once per selection.

The names and the protocol are those of the published Census loader
(``cellxgene_census.experimental.ml.encoders``, 2024), which took them from scikit-learn.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cellfeed._checks import is_integer, ordered, raising
from cellfeed.errors import EncodeError
from cellfeed.select.vocabulary import Vocabulary, code_dtype, plain_values


class Encoder(abc.ABC):
    r"""Turns columns of obs into integer codes and back. Subclass it for your own.

    A dataset calls :meth:`fit` and :meth:`transform` once, when it is made, each with all selected cells. ``obs`` has
    the :attr:`columns` and ``soma_joinid``. An encoder of your own that two datasets are given is fitted by both, and
    decodes codes of the second only: give each dataset one.

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
        """The name under which the dataset lists the encoder."""

    @property
    @abc.abstractmethod
    def columns(self) -> Sequence[str]:
        """The columns of obs that it needs."""

    @abc.abstractmethod
    def fit(self, obs: pd.DataFrame) -> None:
        """Learn from the selected cells; ``obs`` has (at least) :attr:`columns`."""

    @abc.abstractmethod
    def transform(self, obs: pd.DataFrame) -> npt.ArrayLike:
        """Return one integer code per row of ``obs``."""

    @abc.abstractmethod
    def inverse_transform(self, codes: npt.ArrayLike) -> npt.ArrayLike:
        """Return the values that the codes stand for."""


def encode(encoder: Encoder, frame: pd.DataFrame) -> npt.NDArray[Any]:
    """Fit an encoder that is not fitted, and keep its codes in the smallest integer type.

    One that is fitted keeps its codes: another dataset, or its user, decodes by them. ``soma_joinid`` is in ``obs``
    where ``frame`` has it, named by the encoder or not.
    """
    columns = list(dict.fromkeys(encoder.columns))  # a name that comes twice would give two columns of one name
    if "soma_joinid" in frame.columns and "soma_joinid" not in columns:
        columns.append("soma_joinid")
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
            f"encoder {encoder.name!r}: transform must give one integer per cell, shape ({len(frame)},); "
            f"it gave {codes.dtype} of shape {codes.shape}. The obs of a minibatch is int64: return codes, and numbers "
            f"from inverse_transform"
        )
    if len(codes) == 0:
        return np.empty(0, np.int8)
    low, high = int(codes.min()), int(codes.max())
    if high >= 2**63:
        raise EncodeError(f"encoder {encoder.name!r}: transform gave the code {high}; the obs of a minibatch is int64")
    dtype = code_dtype(max(high + 1, -low))
    return codes.astype(dtype, copy=False)


class NamedEncoder(Encoder):
    """An encoder that is told its name and its columns."""

    def __init__(self, name: str, columns: Sequence[str]) -> None:
        self._name = name
        self._columns = list(columns)

    @property
    def name(self) -> str:
        """The name of the encoder."""
        return self._name

    @property
    def columns(self) -> list[str]:
        """The columns that it needs."""
        return self._columns

    @property
    def is_fitted(self) -> bool:
        """Whether it has codes, which it then keeps in each dataset that it is given to."""
        return False


class LabelEncoder(NamedEncoder):
    """Codes 0..K-1 for the K distinct values of a column, in ascending order.

    A missing value (null, NaN) is a class of its own, the last, which decodes to ``None``; or it has the code
    ``unknown``, if that is an integer. Given to several datasets, it has the classes of the first in all of them.

    Parameters
    ----------
    column
        A column of obs: text, categories, numbers or booleans.
    name
        Defaults to the column's name.
    unknown
        What :meth:`transform` does with a value that :meth:`fit` has not seen: ``"error"``, or an integer
        that becomes its code, and the code of missing values. ``unknown=-100`` gives cells without a label the code
        that PyTorch's losses leave out (``ignore_index``).
    classes
        The values, by code, where they are known, such as those that a model was trained on; :meth:`fit` then learns
        nothing. ``None`` at the end stands for a missing value.
    col
        The name that ``column`` has in ``cellxgene_census.experimental.ml``.

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
        unknown: int | str = "error",
        classes: Sequence[Any] | npt.NDArray[Any] | None = None,
        col: str | None = None,
    ) -> None:
        column = _one_of("LabelEncoder", column=column, col=col)
        unknown = _check_unknown(unknown)
        _check_names(column=column, name=column if name is None else name)
        super().__init__(column if name is None else name, [column])
        self._column = column
        self._unknown = unknown
        self._is_fixed = classes is not None
        classes = None if classes is None else plain_values(ordered("classes", classes, EncodeError))
        self._vocabulary = None if classes is None else Vocabulary.of(classes)
        if classes is not None and (len(set(classes)) != len(classes) or None in classes[:-1]):
            raise EncodeError(f"classes={classes!r} must differ, and None be the last of them")

    @property
    def col(self) -> str:
        """The column."""
        return self._column

    @property
    def classes_(self) -> npt.NDArray[Any]:
        """The distinct values, by code."""
        return self._fitted().values

    @property
    def is_fitted(self) -> bool:
        """Whether it has classes: those given, or those of the first dataset that it was given to."""
        return self._vocabulary is not None

    def _fitted(self) -> Vocabulary:
        if self._vocabulary is None:
            raise EncodeError(f"encoder {self._name!r} has not been fitted; call fit(obs) first")
        return self._vocabulary

    def fit(self, obs: pd.DataFrame) -> None:
        """Learn the distinct values of the column, unless ``classes`` were given."""
        if self._is_fixed:
            return
        column = _column(obs, self._column, self._name)
        with raising(EncodeError, f"encoder {self._name!r} cannot put the values of its column in order"):
            self._vocabulary = Vocabulary(column, with_missing=self._unknown == "error")

    @property
    def learns_missing(self) -> bool:
        """Whether :meth:`fit` has made a class of missing values, which nobody has asked for."""
        return not self._is_fixed and self._fitted().has_missing

    def transform(self, obs: pd.DataFrame) -> npt.NDArray[Any]:
        """Return one code per row; an unseen value is an error that names it, or the stated code."""
        column = _column(obs, self._column, self._name)
        codes = self._fitted().codes(column)
        return _replace_unknown(codes, self._unknown, self._name, lambda rows: column.iloc[rows].unique())

    def inverse_transform(self, codes: npt.ArrayLike) -> npt.NDArray[Any]:
        """Return the values of integer codes of any shape; a column, shape (n, 1), gives shape (n,)."""
        return _decode(self._fitted().values, codes, self._name)


class BatchEncoder(NamedEncoder):
    """Codes for the distinct combinations of several columns.

    Combinations are told apart column by column: ("a", "bc") and ("ab", "c") have different codes. Decoded, a
    combination is the text of its values, joined by ``separator``. The text of a missing value is
    ``"<missing>"``; a value with this text is ``"<<missing>>"``.

    Attributes
    ----------
    is_missing
        bool, shape (n_classes,): whether all values of a combination are missing.

    Parameters
    ----------
    columns
        One or more columns of obs.
    name
        The name of the encoder.
    separator
        Stands between the values of a decoded combination. ``None`` takes the first of ``""``, ``"_"``,
        ``"|"``, ``"//"`` for which no two combinations read the same.
    cols
        The name that ``columns`` has in ``cellxgene_census.experimental.ml``.

    Examples
    --------
    >>> encoder = BatchEncoder(["donor", "assay"])
    >>> obs = pd.DataFrame({"donor": ["1", "1", "2"], "assay": ["b", "a", "a"]})
    >>> encoder.fit(obs)
    >>> encoder.transform(obs).tolist()
    [1, 0, 2]
    >>> encoder.inverse_transform([0, 2]).tolist()
    ['1a', '2a']
    """

    _SEPARATORS = ("", "_", "|", "//", "\x1f")

    def __init__(
        self,
        columns: Sequence[str] | None = None,
        name: str = "batch",
        *,
        separator: str | None = None,
        unknown: int | str = "error",
        cols: Sequence[str] | None = None,
    ) -> None:
        columns = _one_of("BatchEncoder", columns=columns, cols=cols)
        if not isinstance(columns, (list, tuple)) or not columns:
            raise EncodeError(f"BatchEncoder: columns={columns!r} must be a list of one or more column names")
        unknown = _check_unknown(unknown)
        _check_names(**{f"columns[{k}]": column for k, column in enumerate(columns)}, name=name)
        if separator is not None and not isinstance(separator, str):
            raise EncodeError(f"BatchEncoder: separator={separator!r} must be text, or None to have one chosen")
        super().__init__(name, columns)
        self._separator = separator
        self._unknown = unknown
        self._vocabularies: list[Vocabulary] = []
        self._combined: npt.NDArray[np.int64] = np.empty(0, np.int64)
        self._classes: npt.NDArray[Any] | None = None
        self.is_missing: npt.NDArray[np.bool_] = np.empty(0, bool)

    @property
    def cols(self) -> list[str]:
        """The columns."""
        return self._columns

    @property
    def is_fitted(self) -> bool:
        """Whether it has classes: those of the first dataset that it was given to."""
        return self._classes is not None

    @property
    def classes_(self) -> npt.NDArray[Any]:
        """The distinct combinations as text, by code."""
        if self._classes is None:
            raise EncodeError(f"encoder {self._name!r} has not been fitted; call fit(obs) first")
        return self._classes

    def fit(self, obs: pd.DataFrame) -> None:
        """Learn the distinct combinations."""
        columns = [_column(obs, column, self._name) for column in self._columns]
        with raising(EncodeError, f"encoder {self._name!r} cannot put the values of its columns in order"):
            self._vocabularies = [Vocabulary(column) for column in columns]
        combinations = 1
        for vocabulary in self._vocabularies:
            combinations *= max(len(vocabulary), 1)
        if combinations >= 2**62:
            raise EncodeError(f"encoder {self._name!r}: columns {self._columns} have too many distinct values")
        self._combined = np.unique(self._combine(obs))
        parts: list[npt.NDArray[np.int64]] = []
        rest = self._combined
        missing = np.ones(len(rest), bool)
        for vocabulary in reversed(self._vocabularies):
            rest, code = np.divmod(rest, max(len(vocabulary), 1))
            parts.insert(0, code)
            missing &= (code == len(vocabulary) - 1) & vocabulary.has_missing
        texts = [np.array(vocabulary.texts, dtype=object) for vocabulary in self._vocabularies]
        rows = zip(*(text[code] for text, code in zip(texts, parts, strict=True)), strict=True)
        self._classes = np.array(self._join([list(row) for row in rows]), dtype=object)
        self._classes.flags.writeable = False  # users are given it
        self.is_missing = missing

    def _join(self, rows: list[list[str]]) -> list[str]:
        separators = self._SEPARATORS if self._separator is None else (self._separator,)
        for separator in separators:
            texts = [separator.join(row) for row in rows]
            if len(set(texts)) == len(texts):
                return texts
        raise EncodeError(
            f"encoder {self._name!r}: with separator={self._separator!r} two combinations of {self._columns} "
            f"read the same; give a separator that is in none of the values"
        )

    def _combine(self, obs: pd.DataFrame) -> npt.NDArray[np.int64]:
        """One number per row for its combination, -1 where a value has not been seen."""
        combined = np.zeros(len(obs), np.int64)
        unseen = np.zeros(len(obs), bool)
        for column, vocabulary in zip(self._columns, self._vocabularies, strict=True):
            codes = vocabulary.codes(_column(obs, column, self._name))
            unseen |= codes < 0
            combined *= len(vocabulary)
            combined += codes
        combined[unseen] = -1
        return combined

    def transform(self, obs: pd.DataFrame) -> npt.NDArray[Any]:
        """Return one code per row; an unseen combination is an error that names it, or the stated code."""
        n_classes = len(self.classes_)
        combined = self._combine(obs)
        codes = np.searchsorted(self._combined, combined)
        codes[codes == n_classes] = 0
        known = self._combined[codes] == combined if n_classes else np.zeros(len(codes), bool)
        codes = np.where(known, codes, -1).astype(code_dtype(n_classes))
        return _replace_unknown(
            codes,
            self._unknown,
            self._name,
            lambda rows: list(dict.fromkeys(zip(*(obs[column].iloc[rows] for column in self._columns), strict=True))),
        )

    def inverse_transform(self, codes: npt.ArrayLike) -> npt.NDArray[Any]:
        """Return the combinations, as text, of integer codes; shapes are those of :class:`LabelEncoder`."""
        return _decode(self.classes_, codes, self._name)


def _column(obs: pd.DataFrame, column: str, encoder: str) -> pd.Series[Any]:
    if not isinstance(obs, pd.DataFrame):
        raise EncodeError(f"encoder {encoder!r} needs obs as a pandas.DataFrame, not a {type(obs).__name__}")
    if column not in obs.columns:
        raise EncodeError(f"encoder {encoder!r} needs the column {column!r}; it was given {list(obs.columns)}")
    return obs[column]


def _one_of(encoder: str, **named: Any) -> Any:
    """Return the one argument that was given under one of its two names."""
    given = [value for value in named.values() if value is not None]
    if len(given) != 1:
        names = list(named)
        raise EncodeError(f"{encoder} takes {names[0]}= or, by its published name, {names[1]}=: give one of them")
    return given[0]


def _check_unknown(unknown: int | str) -> int | str:
    if isinstance(unknown, str) and unknown == "error":
        return unknown
    if not is_integer(unknown) or not -(2**63) <= unknown < 2**63:
        raise EncodeError(f'unknown={unknown!r} must be "error" or the integer code (of 64 bits) of unseen values')
    return int(unknown)


def _check_names(**names: object) -> None:
    for argument, name in names.items():
        if not isinstance(name, str) or not name:
            raise EncodeError(f"encoder: {argument}={name!r} must be a name, as text")


def _replace_unknown(codes: npt.NDArray[Any], unknown: int | str, encoder: str, values: Any) -> npt.NDArray[Any]:
    unseen = codes < 0
    if not unseen.any():
        return codes
    if unknown == "error":
        shown = ", ".join(map(repr, list(values(np.flatnonzero(unseen)))[:5]))
        raise EncodeError(
            f"encoder {encoder!r} has not seen {shown} when it was fitted; fit it on all values, make a new "
            f"one for a dataset with other classes, or give unknown=<code> to take them as one code"
        )
    return np.where(unseen, np.int64(unknown), codes.astype(np.int64))


def _decode(values: npt.NDArray[Any], codes: npt.ArrayLike, encoder: str) -> npt.NDArray[Any]:
    with raising(EncodeError, f"encoder {encoder!r}: codes must be integers in an array"):
        index = np.asarray(codes)
    if index.ndim == 2 and index.shape[1] == 1:  # obs of one column, which scikit-learn's encoders take so
        index = index[:, 0]
    if index.size and (index.dtype.kind not in "iu" or index.min() < 0 or index.max() >= len(values)):
        got = f", from {index.min()} to {index.max()}" if index.dtype.kind in "iuf" else ""
        raise EncodeError(
            f"encoder {encoder!r}: codes must be integers from 0 to {len(values) - 1}, got {index.dtype}{got}"
        )
    return values[index.astype(np.int64)]  # type: ignore[no-any-return,unused-ignore]
