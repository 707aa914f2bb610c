"""An encoder of combinations of columns, such as donor and assay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cellfeed._checks import raising
from cellfeed._joinids import find_in
from cellfeed.errors import EncodeError
from cellfeed.select.encoders import ClassEncoder, one_of
from cellfeed.select.vocabulary import Vocabulary, code_dtype


class BatchEncoder(ClassEncoder):
    """Encodes the distinct combinations of several columns.

    Combinations are compared column by column: ("a", "bc") and ("ab", "c") have different codes. A decoded
    combination is the text of its values, joined by ``separator``. The text of a missing value is
    ``"<missing>"``; the text of the value ``"<missing>"`` is ``"<<missing>>"``.

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
        Text between the values of a decoded combination. ``None`` takes the first of ``""``, ``"_"``, ``"|"``,
        ``"//"`` with which all combinations have different texts.
    handle_unknown, unknown_value
        As for :class:`LabelEncoder`; a combination with a missing value is a class like any other.
    cols
        The name of ``columns`` in ``cellxgene_census.experimental.ml``.

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
        handle_unknown: str = "error",
        unknown_value: int | None = None,
        cols: Sequence[str] | None = None,
    ) -> None:
        columns = one_of("BatchEncoder", columns=columns, cols=cols)
        if not isinstance(columns, (list, tuple)) or not columns:
            raise EncodeError(f"BatchEncoder: columns={columns!r} must be a list of one or more column names")
        if separator is not None and not isinstance(separator, str):
            raise EncodeError(f"BatchEncoder: separator={separator!r} must be text, or None to choose one")
        named = {f"columns[{k}]": column for k, column in enumerate(columns)}
        super().__init__(name, named, handle_unknown, unknown_value)
        self._separator = separator
        self._vocabularies: list[Vocabulary] = []  # one per column
        self._keys: npt.NDArray[np.int64] = np.empty(0, np.int64)  # (n_classes,), ascending
        self._classes: npt.NDArray[Any] | None = None
        self.is_missing: npt.NDArray[np.bool_] = np.empty(0, bool)

    @property
    def cols(self) -> list[str]:
        """The columns of obs."""
        return self._columns

    @property
    def is_fitted(self) -> bool:
        """Whether the encoder has classes: those of the first dataset that it was given to."""
        return self._classes is not None

    @property
    def classes_(self) -> npt.NDArray[Any]:
        """The distinct combinations as text, by code."""
        if self._classes is None:
            raise self._not_fitted()
        return self._classes

    def fit(self, obs: pd.DataFrame) -> None:
        """Learn the distinct combinations."""
        columns = [self._column(obs, column) for column in self._columns]
        with raising(EncodeError, f"encoder {self._name!r} cannot sort the values of its columns"):
            self._vocabularies = [Vocabulary(column) for column in columns]
        sizes = [max(len(vocabulary), 1) for vocabulary in self._vocabularies]
        if math.prod(sizes) >= 2**62:
            raise EncodeError(f"encoder {self._name!r}: columns {self._columns} have too many distinct values")
        self._keys = np.unique(self._combine(obs))
        codes = np.unravel_index(self._keys, sizes)  # per column, (n_classes,)
        missing = np.ones(len(self._keys), bool)
        for vocabulary, code in zip(self._vocabularies, codes, strict=True):
            missing &= (code == len(vocabulary) - 1) & vocabulary.has_missing
        texts = [np.array(v.texts, dtype=object)[code] for v, code in zip(self._vocabularies, codes, strict=True)]
        self._classes = np.array(self._join(list(zip(*texts, strict=True))), dtype=object)
        self._classes.flags.writeable = False  # users receive this array
        self.is_missing = missing

    def _join(self, combinations: Sequence[tuple[str, ...]]) -> list[str]:
        separators = self._SEPARATORS if self._separator is None else (self._separator,)
        for separator in separators:
            texts = [separator.join(values) for values in combinations]
            if len(set(texts)) == len(texts):
                return texts
        raise EncodeError(
            f"encoder {self._name!r}: with separator={self._separator!r} two combinations of {self._columns} "
            f"have the same text; give a separator that occurs in no value"
        )

    def _combine(self, obs: pd.DataFrame) -> npt.NDArray[np.int64]:
        """Return one number per row for its combination; -1 if a vocabulary lacks one of its values.

        The codes of the columns are the digits of the number: with vocabularies of 2 and 3 values, the codes (1, 2)
        make 1 * 3 + 2 = 5.
        """
        keys = np.zeros(len(obs), np.int64)
        unknown = np.zeros(len(obs), bool)
        for column, vocabulary in zip(self._columns, self._vocabularies, strict=True):
            codes = vocabulary.codes(self._column(obs, column))
            unknown |= codes < 0
            keys *= len(vocabulary)
            keys += codes
        keys[unknown] = -1
        return keys

    def transform(self, obs: pd.DataFrame) -> npt.NDArray[Any]:
        """Return one code per row; ``handle_unknown`` decides on combinations without a class."""
        n_classes = len(self.classes_)
        keys = self._combine(obs)
        codes = find_in(self._keys, keys).astype(code_dtype(n_classes))
        return self._replace_unknown(
            codes,
            lambda rows: list(dict.fromkeys(zip(*(obs[column].iloc[rows] for column in self._columns), strict=True))),
        )
