"""How long to wait before something that failed is tried again. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

FIRST_S = 0.2
"""Seconds before the second attempt at most."""

LONGEST_S = 5.0
"""Seconds before any attempt at most: so late, and on average half as late, is the end of an outage noticed."""


def delays(until: float, *, clock: Callable[[], float], random: Callable[[], float]) -> Iterator[float]:
    """Yield the seconds to wait before each further attempt; the last one is at the deadline.

    The longest wait doubles from time to time up to a limit, and each is drawn evenly between nothing and that ("full
    jitter"), so that many readers that failed together do not come back together.

    Parameters
    ----------
    until
        The deadline, as the clock tells it.
    clock
        Tells the seconds that have passed since some moment.
    random
        Draws a number of at least 0 and less than 1.

    Examples
    --------
    >>> list(delays(1.0, clock=iter([0.1, 0.3, 0.6, 1.0]).__next__, random=lambda: 0.75))
    [0.15000000000000002, 0.30000000000000004, 0.4]
    """
    longest = FIRST_S
    while (left := until - clock()) > 0:
        yield min(random() * longest, left)
        longest = min(2 * longest, LONGEST_S)
