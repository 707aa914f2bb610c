"""Checks of arguments, and the format of values in errors and warnings."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Integral
from typing import Any, TypeGuard, TypeVar

from cellfeed.errors import CellfeedError, PlanError, SelectionError

T = TypeVar("T")


def is_number(value: object) -> TypeGuard[float]:
    """Whether an argument is an int or a float, but not a bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_integer(value: object) -> TypeGuard[int]:
    """Whether an argument is an integer of Python or NumPy, but not a bool or a float such as ``2.0``."""
    return isinstance(value, Integral) and not isinstance(value, bool)


_SWITCH = dict.fromkeys(("0", "", "false", "no", "off"), False) | dict.fromkeys(("1", "true", "yes", "on"), True)


def is_enabled(variable: str, *, default: bool) -> bool:
    """Return whether an environment variable of cellfeed switches something on, in upper or lower case.

    Raises
    ------
    PlanError
        If its value is neither on nor off.

    Examples
    --------
    >>> is_enabled("CELLFEED_DIRECT", default=True)
    True
    """
    value = os.environ.get(variable)
    if value is None:
        return default
    if value.lower() not in _SWITCH:
        raise PlanError(
            f"{variable}={value!r} in the environment must be 1, true, yes or on, or 0, false, no, off or empty"
        )
    return _SWITCH[value.lower()]


def suggest(name: object, candidates: Iterable[str]) -> str:
    """Return the candidates that are similar to a misspelt name, and all candidates.

    Examples
    --------
    >>> suggest("cell_typ", ["cell_type", "assay"])
    "did you mean 'cell_type'? There are: 'assay', 'cell_type'"
    """
    known = sorted(candidates)
    by_case = {candidate.casefold(): candidate for candidate in known}
    close = difflib.get_close_matches(str(name).casefold(), list(by_case), n=3, cutoff=0.6)
    guess = f"did you mean {' or '.join(repr(by_case[key]) for key in close)}? " if close else ""
    return f"{guess}There are: {', '.join(map(repr, known)) or 'none'}"


MAX_SHOWN = 5
"""The number of names that a message lists."""


def abbreviate(names: Sequence[object]) -> str:
    """Return the first of some names, and the number of the others.

    Examples
    --------
    >>> abbreviate(["A1BG", "A2M"]), abbreviate(range(8))
    ("'A1BG', 'A2M'", '0, 1, 2, 3, 4 and 3 others')
    """
    shown = ", ".join(map(repr, names[:MAX_SHOWN]))
    return f"{shown} and {len(names) - MAX_SHOWN} others" if len(names) > MAX_SHOWN else shown


def shortened(text: str, n: int = 200) -> str:
    """Return at most ``n`` characters of a text; a longer text ends in dots."""
    return text if len(text) <= n else f"{text[: n - 3]}..."


def missing_from(names: Sequence[T], others: Sequence[T]) -> list[T]:
    """Return the names that ``others`` lacks, in order."""
    known = set(others)
    return [name for name in names if name not in known]


def repeated(names: Iterable[str]) -> list[str]:
    """Return the names that occur more than once, each once, sorted."""
    return sorted(name for name, n in Counter(names).items() if n > 1)


def ordered(argument: str, values: Any, error: type[CellfeedError] = SelectionError) -> list[Any]:
    """Return the values of an argument as a list; their order matters.

    Raises
    ------
    error
        If the argument is text, a set (its order differs between processes), or not iterable.

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
        return list(values.to_pylist() if hasattr(values, "to_pylist") else values)  # Arrow scalars do not equal text
    except TypeError:
        raise error(f"{argument}={values!r} must be a list") from None


def check_transform(transform: Any) -> Callable[[Any], Any]:
    """Return the transform; raise a PlanError if it is a class or not callable."""
    if isinstance(transform, type):
        raise PlanError(f"transform={transform.__name__} is a class; give an instance, such as {transform.__name__}()")
    if not callable(transform):
        raise PlanError(
            f"transform={transform!r} must be a callable that takes X and returns X, such as "
            f"cellfeed.transforms.Compose([NormalizeTotal(), Log1p()])"
        )
    return transform  # type: ignore[no-any-return]


def check_choice(argument: str, value: object, choices: Sequence[object]) -> None:
    """Raise a PlanError if an argument is not one of some texts, or ``None`` where that is a choice."""
    if not (value is None or isinstance(value, str)) or value not in choices:
        raise PlanError(f"{argument}={value!r} must be one of {', '.join(map(repr, choices))}")


def check_name(argument: str, name: object) -> None:
    """Raise a SelectionError if an argument is not a name, as text."""
    if not isinstance(name, str) or not name:
        raise SelectionError(f"{argument}={name!r} must be a name, as text")


@contextlib.contextmanager
def raising(error: type[CellfeedError], what: str) -> Iterator[None]:
    """Re-raise an exception of the body as ``error``, with ``what`` before its message."""
    try:
        yield
    except Exception as cause:
        raise error(f"{what}: {str(cause) or type(cause).__name__}") from cause


def warn_user(message: str) -> None:
    """Issue a UserWarning at the line outside cellfeed that made the call."""
    level = 2  # 1 is this function
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] == "cellfeed":
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)


_UNITS = {
    "B": 1,
    **{f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", start=1)},
    **{f"{prefix}IB": 1024**power for power, prefix in enumerate("KMGT", start=1)},
    **{prefix: 1000**power for power, prefix in enumerate("KMGT", start=1)},
    **{f"{prefix}I": 1024**power for power, prefix in enumerate("KMGT", start=1)},
    "": 1,
}


MAX_BYTES = 1 << 60
"""The largest amount of memory that is accepted."""


def parse_bytes(value: int | str, *, argument: str = "memory_budget") -> int:
    """Return an amount of memory as a number of bytes.

    Parameters
    ----------
    value
        A number of bytes, or text such as ``"2 GiB"``, ``"500MB"``, ``"1.5 G"`` or ``"2000000000"``. ``G`` is ``GB``,
        10**9 bytes, and ``Gi`` is ``GiB``.
    argument
        The name of the argument, for errors.

    Returns
    -------
    The number of bytes, at least 1.

    Raises
    ------
    PlanError
        If the text has no known unit, or the amount is not positive.

    Examples
    --------
    >>> parse_bytes("2 GiB")
    2147483648
    """
    if is_integer(value):
        n_bytes = int(value)
    elif not isinstance(value, str):
        raise PlanError(f'{argument}={value!r} must be a number of bytes or text such as "2 GiB"')
    else:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
        unit = match and _UNITS.get(match[2].upper())
        if not match or not unit:
            raise PlanError(
                f"{argument}={value!r} is not an amount of memory; write a number of bytes or, for example, "
                f'"2 GiB" (units: B, KB, MB, GB, TB, KiB, MiB, GiB, TiB)'
            )
        amount = float(match[1]) * unit
        n_bytes = int(amount) if amount < MAX_BYTES else MAX_BYTES + 1
    if n_bytes < 1:
        raise PlanError(f"{argument}={value!r} must be at least 1 byte")
    if n_bytes > MAX_BYTES:
        raise PlanError(f"{argument}={value!r} is too much; give at most 2**60 bytes")
    return n_bytes


def format_bytes(n_bytes: float) -> str:
    """Return a number of bytes as text, in the largest suitable unit.

    Examples
    --------
    >>> format_bytes(3_200_000_000)
    '2.98 GiB'
    >>> format_bytes(1010 << 20)
    '1010 MiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.{3 if n_bytes < 999.5 else 4}g} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.3g} TiB"
