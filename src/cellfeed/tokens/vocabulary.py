"""The tokens that a model knows: an integer for each gene, and for each special token."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cellfeed._checks import abbreviate, is_integer
from cellfeed._joinids import IntArray
from cellfeed.errors import SelectionError


class Vocabulary:
    """The token of each gene, and the special tokens of a model.

    Parameters
    ----------
    ids
        Token by name, of genes and of special tokens: distinct integers of at least 0.
    pad_token
        Name of the token that fills rows.
    cls_token, eos_token
        Names of the tokens before and after those of the genes; ``None`` for none.
    var_column
        The column of var that has the names; see :meth:`cellfeed.ExperimentDataset.gene_names`.
    unknown
        If ``ids`` lacks a gene of the dataset, ``"drop"`` does not read the gene, and ``"error"`` raises an error.

    Raises
    ------
    SelectionError
        If a token is not an integer, if two names have one token, or if a special token is missing.

    Examples
    --------
    >>> vocabulary = cellfeed.tokens.Vocabulary({"<pad>": 0, "<cls>": 1, "CD3D": 2, "LYZ": 3}, cls_token="<cls>")
    >>> len(vocabulary), vocabulary.ids_of(["LYZ", "XIST"])
    (4, array([ 3, -1]))
    """

    def __init__(
        self,
        ids: Mapping[str, int],
        *,
        pad_token: str = "<pad>",
        cls_token: str | None = None,
        eos_token: str | None = None,
        var_column: str | None = None,
        unknown: str = "drop",
    ) -> None:
        if not isinstance(ids, Mapping):
            raise SelectionError(f"ids must be a mapping of names to integers, not a {type(ids).__name__}")
        if unknown not in ("drop", "error"):
            raise SelectionError(f'unknown={unknown!r} must be "drop" or "error"')
        wrong = [name for name, number in ids.items() if not is_integer(number) or number < 0]
        if wrong:
            raise SelectionError(f"ids[{wrong[0]!r}]={ids[wrong[0]]!r} must be an integer of at least 0")
        self._ids = {str(name): int(number) for name, number in ids.items()}
        repeated = [number for number, n in Counter(self._ids.values()).items() if n > 1]
        if repeated:
            names = [name for name, number in self._ids.items() if number == repeated[0]]
            raise SelectionError(
                f"ids has the token {repeated[0]} for {abbreviate(names)}; give each name its own token"
            )
        self.pad_id = self._special("pad_token", pad_token)
        self.cls_id = self._special("cls_token", cls_token)
        self.eos_id = self._special("eos_token", eos_token)
        self.var_column, self.unknown = var_column, unknown
        special = {pad_token, cls_token, eos_token}
        self._of_genes = {name: number for name, number in self._ids.items() if name not in special}

    def _special(self, argument: str, name: str | None) -> int:
        """Return a special token, -1 without one."""
        if name is not None and name not in self._ids:
            raise SelectionError(f"{argument}={name!r} is not in ids; give a name of ids, or add the name to ids")
        return -1 if name is None else self._ids[name]

    @classmethod
    def from_file(cls, path: str | PathLike[str], **parameters: Any) -> Vocabulary:
        r"""Read the tokens from a file.

        Parameters
        ----------
        path
            A file ``.json`` that holds a mapping of names to integers, or a text with a name per line, whose tokens
            count from 0. Load a pickle yourself, and only one that you trust: ``Vocabulary(pickle.load(file))``.
        parameters
            As for the class.

        Examples
        --------
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "genes.txt")
        ...     _ = path.write_text("<pad>\nCD3D\nLYZ\n")
        ...     cellfeed.tokens.Vocabulary.from_file(path).ids_of(["LYZ"])
        array([2])
        """
        file = Path(path)
        if file.suffix in (".pkl", ".pickle"):
            raise SelectionError(
                f"path={str(path)!r} is a pickle, which may run any code when it is read; if you trust it, load it "
                f"yourself: Vocabulary(pickle.load(open({file.name!r}, 'rb')))"
            )
        try:
            text = file.read_text(encoding="utf-8")
            ids = json.loads(text) if file.suffix == ".json" else {name: k for k, name in enumerate(text.splitlines())}
        except (OSError, ValueError) as cause:
            raise SelectionError(f"path={str(path)!r} cannot be read as a vocabulary ({cause})") from cause
        return cls(ids, **parameters)

    def __len__(self) -> int:
        """Return the number of tokens, those of special tokens included."""
        return len(self._ids)

    def ids_of(self, names: Sequence[str] | npt.NDArray[Any]) -> IntArray:
        """Return the token of each gene: int64, shape (len(names),); -1 for a gene that is not in the vocabulary."""
        return np.array([self._of_genes.get(name, -1) for name in names], np.int64)

    def _find(self, names: npt.NDArray[Any]) -> IntArray:
        """Return the indices of the genes of a dataset that are in the vocabulary.

        Raises
        ------
        SelectionError
            If no gene is known, if a known name stands for several genes, or, with ``unknown="error"``, if one is not.
        """
        is_known = self.ids_of(names) >= 0
        column = "" if self.var_column is None else f" by var_column={self.var_column!r}"
        if not is_known.any():
            raise SelectionError(
                f"the vocabulary knows none of the {len(names)} genes{column}, such as "
                f"{abbreviate(names[:3].tolist())}; give the column of var that has its names, by var_column"
            )
        if self.unknown == "error" and not is_known.all():
            absent = names[~is_known].tolist()
            raise SelectionError(
                f"{len(absent)} of {len(names)} genes are not in the vocabulary: {abbreviate(absent)}; leave them out "
                f'by var_query, or give unknown="drop"'
            )
        repeated = [name for name, n in Counter(names[is_known]).items() if n > 1]
        if repeated:
            raise SelectionError(
                f"genes {abbreviate(repeated)} stand for several columns each; give a var_column of unique names, or "
                f"leave the others out by var_query"
            )
        return np.flatnonzero(is_known)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} tokens)"
