"""Amounts of memory: read what people write, write what people read."""

from __future__ import annotations

import re

from cellfeed.errors import PlanError, is_whole

_UNITS = {
    "B": 1,
    **{f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", start=1)},
    **{f"{prefix}IB": 1024**power for power, prefix in enumerate("KMGT", start=1)},
    **{prefix: 1000**power for power, prefix in enumerate("KMGT", start=1)},
    **{f"{prefix}I": 1024**power for power, prefix in enumerate("KMGT", start=1)},
    "": 1,
}


MAX_BYTES = 1 << 60


def parse_bytes(value: int | str, *, argument: str = "memory_budget") -> int:
    """Turn an amount of memory into a number of bytes.

    Parameters
    ----------
    value
        A number of bytes, or text such as ``"2 GiB"``, ``"500MB"``, ``"1.5 G"`` or ``"2000000000"``. ``G`` is ``GB``,
        a thousand million, and ``Gi`` is ``GiB``.
    argument
        The name of the argument that an error shall show.

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
    if is_whole(value):
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
        raise PlanError(f"{argument}={value!r} must be more than nothing")
    if n_bytes > MAX_BYTES:
        raise PlanError(f"{argument}={value!r} is more than any machine has; give a number of bytes up to 2**60")
    return n_bytes


def format_bytes(n_bytes: float) -> str:
    """Write a number of bytes with the unit in which it is easiest to read.

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
