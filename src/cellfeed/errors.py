"""The errors of cellfeed.

::

    CellfeedError
    ├── SelectionError (ValueError)    what was asked for is not in the experiment
    ├── PlanError (ValueError)         sizes, budgets, weights or ranks that cannot be planned
    ├── EncodeError (ValueError)       a column or label that an encoder cannot turn into codes
    ├── StateError (ValueError)        a saved state that does not belong to this dataset
    ├── ReadError (RuntimeError)       reading failed, or the store holds what no loader can serve
    └── MissingDependencyError (ImportError)    an optional library that is not installed

Each is built from one string: PyTorch re-raises a worker's exception from its text alone.
"""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any, TypeGuard, TypeVar

T = TypeVar("T")


class CellfeedError(Exception):
    """Base of all errors that cellfeed raises on purpose.

    Examples
    --------
    >>> try:
    ...     cellfeed.ExperimentDataset("nowhere")
    ... except cellfeed.CellfeedError as error:
    ...     print(type(error).__name__)
    SelectionError
    """


class SelectionError(CellfeedError, ValueError):
    """The experiment, measurement, layer, column or query asked for cannot be served.

    Examples
    --------
    >>> cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), X_name="rav")
    Traceback (most recent call last):
    cellfeed.errors.SelectionError: X_name='rav' is not a layer of X; did you mean 'raw'? There are: 'raw'
    """


class PlanError(CellfeedError, ValueError):
    """Sizes, budgets, weights or ranks from which no epoch can be planned.

    Examples
    --------
    >>> cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), batch_size=0)
    Traceback (most recent call last):
    cellfeed.errors.PlanError: batch_size=0 must be an integer of at least 1, and less than 2**31
    """


class EncodeError(CellfeedError, ValueError):
    """A column or a label that an encoder cannot turn into codes.

    Examples
    --------
    >>> encoder = cellfeed.LabelEncoder("phase", classes=["G1", "S"])
    >>> encoder.fit(pd.DataFrame({"phase": ["G2M"]}))
    >>> encoder.transform(pd.DataFrame({"phase": ["G2M"]}))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    cellfeed.errors.EncodeError: encoder 'phase' has not seen 'G2M' when it was fitted; ...
    """


class StateError(CellfeedError, ValueError):
    """A saved state that does not belong to this dataset.

    Examples
    --------
    >>> one, other = (cellfeed.ExperimentDataset(cellfeed.datasets.pbmc700(), seed=k) for k in (1, 2))
    >>> other.load_state_dict(one.state_dict())  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    cellfeed.errors.StateError: the state was saved with seed=1, and this dataset has seed=2: ...
    """


class ReadError(CellfeedError, RuntimeError):
    """Reading the store failed, or it holds what cannot be served exactly.

    Examples
    --------
    >>> import shutil, tempfile
    >>> uri = cellfeed.datasets.pbmc700(tempfile.mkdtemp() + "/cells.soma")
    >>> dataset = cellfeed.ExperimentDataset(uri)
    >>> shutil.rmtree(uri.removeprefix("file://"))
    >>> next(iter(dataset))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    cellfeed.errors.ReadError: reading soma_joinid 0 to 699 of ...
    """


class GaveUp(Exception):  # noqa: N818 - what failed is told by others, as a ReadError
    """Nothing came from an object store until the deadline, or until it was not wanted any more."""


class MissingDependencyError(CellfeedError, ImportError):
    """An optional library that is needed and not installed.

    Examples
    --------
    >>> try:
    ...     import cellfeed.lightning
    ... except cellfeed.MissingDependencyError as error:
    ...     print(error)  # what to install
    """


def is_real(value: object) -> TypeGuard[float]:
    """Whether an argument is a number; ``True`` and ``False`` are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_whole(value: object) -> TypeGuard[int]:
    """Whether an argument is a whole number, of Python or NumPy; ``True`` and ``False`` are none, nor is ``2.0``."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def nearest(name: object, candidates: Iterable[str]) -> str:
    """Say which of the candidates a misspelt name may have meant.

    Examples
    --------
    >>> nearest("cell_typ", ["cell_type", "assay"])
    "did you mean 'cell_type'? There are: 'assay', 'cell_type'"
    """
    known = sorted(candidates)
    by_case = {one.casefold(): one for one in known}
    close = difflib.get_close_matches(str(name).casefold(), list(by_case), n=3, cutoff=0.6)
    guess = f"did you mean {' or '.join(repr(by_case[one]) for one in close)}? " if close else ""
    return f"{guess}There are: {', '.join(map(repr, known)) or 'none'}"


MAX_SHOWN = 5
"""Names that a message lists."""


def some(names: Sequence[object]) -> str:
    """List the first of some names, and say how many there are besides.

    Examples
    --------
    >>> some(["A1BG", "A2M"]), some(range(8))
    ("'A1BG', 'A2M'", '0, 1, 2, 3, 4 and 3 others')
    """
    shown = ", ".join(map(repr, names[:MAX_SHOWN]))
    return f"{shown} and {len(names) - MAX_SHOWN} others" if len(names) > MAX_SHOWN else shown


def shortened(text: str, n: int = 200) -> str:
    """Return text of at most ``n`` characters: of longer ones the first, and dots."""
    return text if len(text) <= n else f"{text[: n - 3]}..."


def lacking(names: Sequence[T], among: Sequence[T]) -> list[T]:
    """Return the names that are not among others, in their order."""
    known = set(among)
    return [name for name in names if name not in known]


def ordered(argument: str, values: Any, error: type[CellfeedError] = SelectionError) -> list[Any]:
    """Return the values of an argument whose order counts, as a list.

    Raises
    ------
    error
        If it is text, a set, which has another order in each process, or not iterable.

    Examples
    --------
    >>> ordered("genes", (name for name in ["A1BG", "A2M"]))
    ['A1BG', 'A2M']
    """
    if isinstance(values, (set, frozenset)):
        raise error(
            f"{argument}={values!r} is a set, which has another order in each process; give an ordered list, such as "
            f"sorted({argument})"
        )
    if isinstance(values, str):
        raise error(f"{argument}={values!r} must be a list of names: [{values!r}]")
    try:
        return list(values.to_pylist() if hasattr(values, "to_pylist") else values)  # of Arrow: scalars equal no text
    except TypeError:
        raise error(f"{argument}={values!r} must be a list") from None


def warn_user(message: str) -> None:
    """Warn at the line of the caller's own code, however deep in cellfeed the reason lies."""
    level = 2  # 1 would be this line
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] == "cellfeed":
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)
