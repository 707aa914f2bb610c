"""The columns of obs in a minibatch: which encoder makes each of them, and the columns of the store that it needs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import pandas as pd

from cellfeed._checks import check_name, ordered, repeated, suggest
from cellfeed._joinids import JOINID
from cellfeed.errors import EncodeError, SelectionError
from cellfeed.select.encoders import Encoder, LabelEncoder, NamedEncoder, encode
from cellfeed.select.labels import warn_of_labels
from cellfeed.select.selection import Selection


@dataclass(frozen=True)
class ObsColumns:
    """The columns of a minibatch's obs, in order.

    Attributes
    ----------
    encoders
        One per column; ``None`` stands for the joinid.
    are_plain
        Whether the user gave names of columns, not encoders.
    """

    encoders: tuple[Encoder | None, ...]
    are_plain: bool

    @classmethod
    def from_arguments(cls, obs_column_names: Sequence[str], encoders: Sequence[Encoder] | None) -> Self:
        """Make the columns of the arguments of a dataset; raise an :class:`EncodeError` if they are invalid."""
        given = [] if encoders is None else ordered("encoders", encoders)
        return cls(tuple(_choose_encoders(obs_column_names, given)), not given)

    def needed(self, known: Collection[str]) -> list[str]:
        """Return the columns of obs that the encoders need; a column that is not known is an error."""
        encoders = [encoder for encoder in self.encoders if encoder]
        columns = list(dict.fromkeys(column for encoder in encoders for column in encoder.columns))
        if any(not isinstance(encoder, NamedEncoder) for encoder in encoders) and JOINID not in columns:
            columns.append(JOINID)  # encoders of users may read it without naming it, as in tiledbsoma-ml
        for column in columns:
            if column not in known:
                needed_by = next(encoder.name for encoder in encoders if column in encoder.columns)
                raise SelectionError(
                    f"obs has no column {column!r}, which encoder {needed_by!r} needs (obs_column_names or encoders); "
                    f"{suggest(column, known)}"
                )
        return columns

    def encode(self, selection: Selection, frame: pd.DataFrame) -> Selection:
        """Return a selection with the fitted encoders and the codes of its cells.

        Parameters
        ----------
        frame
            The needed columns of obs of the selected cells.
        """
        codes: dict[str, Any] = {
            encoder.name if encoder else JOINID: encode(encoder, frame) if encoder else selection.joinid_column
            for encoder in self.encoders
        }
        warn_of_labels(self.encoders, frame, plain=self.are_plain)
        return replace(selection, encoders={encoder.name: encoder for encoder in self.encoders if encoder}, codes=codes)


def _choose_encoders(obs_column_names: Sequence[str], encoders: Sequence[Encoder]) -> list[Encoder | None]:
    """Return one encoder per column of the minibatch's obs; ``None`` stands for the joinid."""
    names = ordered("obs_column_names", obs_column_names)
    for name in names:
        check_name("obs_column_names: a column", name)
    if encoders:
        if names:
            raise EncodeError(
                f"encoders and obs_column_names={names} exclude each other: encoders name the columns "
                f"that they need; give LabelEncoder(column) for a plain column"
            )
        for encoder in encoders:
            if not isinstance(encoder, Encoder):
                raise EncodeError(f"encoders: {encoder!r} is not a cellfeed.Encoder")
        names = [encoder.name for encoder in encoders]
        chosen: list[Encoder | None] = list(encoders)
    else:
        chosen = [None if name == JOINID else LabelEncoder(name) for name in names]
    if again := repeated(names):
        raise EncodeError(
            f"two encoders have the name {again[0]!r}; names must differ, as they are the keys of dataset.obs_encoders"
        )
    return chosen
