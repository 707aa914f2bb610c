"""Requests to an object store: repeated while they fail for a passing reason, and given up at a deadline."""

from __future__ import annotations

import atexit
import logging
import os
import queue
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from cellfeed._checks import is_number
from cellfeed.errors import PlanError, RetryTimeout
from cellfeed.sources.failures import advice_for, is_transient, readable
from cellfeed.sources.redact import public_cause, redacted
from cellfeed.stats import Meter

logger = logging.getLogger("cellfeed.retry")

T = TypeVar("T")

RETRY_DEADLINE_S = 120.0
"""Default number of seconds after which a request to an object store is given up."""

MAX_DEADLINE_S = 1e6

GRACE_S = 1.0
"""Seconds that the last attempt gets if it starts at the deadline."""

FIRST_DELAY_S = 0.2
"""Upper limit in seconds of the delay before the second attempt."""

MAX_DELAY_S = 5.0
"""Upper limit in seconds of any delay, and so of the time until the end of an outage is noticed."""

_all_retries: weakref.WeakSet[Retries] = weakref.WeakSet()
_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


def check_deadline(retry_deadline_s: float) -> None:
    """Check that a deadline is a number of seconds in the allowed range."""
    if not is_number(retry_deadline_s) or not 0 <= retry_deadline_s <= MAX_DEADLINE_S:
        raise PlanError(
            f"retry_deadline_s={retry_deadline_s!r} must be a number of seconds from 0, which tries once, to "
            f"{MAX_DEADLINE_S:g}"
        )


def delays(until: float, *, clock: Callable[[], float], draw: Callable[[], float]) -> Iterator[float]:
    """Yield the seconds to wait before each further attempt; the last attempt is at the deadline.

    The upper limit doubles with each attempt up to :data:`MAX_DELAY_S`. Each delay is drawn uniformly between 0 and
    the limit ("full jitter"), so that readers that failed together do not return together.

    Parameters
    ----------
    until
        Deadline, in the seconds of ``clock``.
    clock
        Returns the current time in seconds.
    draw
        Returns a random number in [0, 1).

    Examples
    --------
    >>> list(delays(1.0, clock=iter([0.1, 0.3, 0.6, 1.0]).__next__, draw=lambda: 0.75))
    [0.15000000000000002, 0.30000000000000004, 0.4]
    """
    limit = FIRST_DELAY_S
    while (left := until - clock()) > 0:
        yield min(draw() * limit, left)
        limit = min(2 * limit, MAX_DELAY_S)


class Retries:
    """Makes requests in threads; each is repeated until it succeeds, fails for good or reaches the deadline.

    TileDB itself retries for two and a half minutes if the store answers "slow down", whatever its settings are. So
    the caller does not wait for TileDB: at the deadline it gets an error, and the thread ends later. Memory that an
    attempt writes to must not be used after a :class:`RetryTimeout`. If one request is given up, all others are too.

    Parameters
    ----------
    deadline_s
        Seconds from the start of a request after which it is given up; 0 makes one attempt, without a time limit.
    n_threads
        Number of requests at the same time; 0 makes requests in the thread of the caller.
    meter
        Counts failed attempts and the seconds of the delays.
    secrets
        Texts to remove from messages.
    was_reached
        Whether the store was reached before with the same settings. True after the first success.
    clock, sleep, draw
        Replaced in tests. ``sleep`` returns True if the requests were ended while it waited.
    """

    def __init__(
        self,
        deadline_s: float,
        *,
        n_threads: int = 0,
        meter: Meter | None = None,
        secrets: frozenset[str] = frozenset(),
        was_reached: bool = False,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], bool] | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.deadline_s = deadline_s
        self.secrets = secrets
        self.was_reached = was_reached
        self.clock = clock
        self.draw = draw
        self._n_threads = n_threads
        self._n_running = 0
        self._meter = meter
        self._queue: queue.SimpleQueue[Request[Any] | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._ended_by: RetryTimeout | None = None
        self.sleep = sleep or self._closed.wait
        self.changed = threading.Condition()
        self._is_failing = False
        _all_retries.add(self)

    def call(self, attempt: Callable[[], T]) -> T:
        """Make a request and return its result."""
        return self.start(attempt).result()

    def start(self, attempt: Callable[[], T]) -> Request[T]:
        """Start a request; its ``result()`` waits for it."""
        request = Request(self, attempt)
        if self._n_threads == 0:
            request.run()
            return request
        self._queue.put(request)
        with self.changed:
            is_needed = self._n_running < self._n_threads
            self._n_running += is_needed
        if is_needed:
            thread = threading.Thread(target=self._run, name="cellfeed-request", daemon=True)
            _threads.add(thread)
            thread.start()
        return request

    def _run(self) -> None:
        while (request := self._queue.get()) is not None:
            request.run()
            del request  # the result belongs to the caller; a reference here would keep its memory

    def note_failure(self, cause: BaseException, delay: float, n_attempts: int, left_s: float) -> None:
        """Count and log a failed attempt; the first of an outage is a warning."""
        if self._meter is not None:
            self._meter.add(n_retries=1, retry_wait_s=delay)
        level, self._is_failing = logging.INFO if self._is_failing else logging.WARNING, True
        text = "attempt %d failed, the next is in %.1f s, the last in %.0f s: %s"
        logger.log(level, text, n_attempts, delay, left_s, self.message_of(cause))

    def note_success(self) -> None:
        """Log the end of an outage."""
        self.was_reached = True
        if self._is_failing:
            self._is_failing = False
            logger.info("the store answers again")

    def message_of(self, cause: BaseException) -> str:
        """Return the message of an error without HTTP headers and secrets."""
        return readable(redacted(cause, self.secrets)) or type(cause).__name__

    def check_open(self) -> None:
        """Raise the error that ended all requests, if there is one."""
        if self._closed.is_set():
            reason = self._ended_by or RetryTimeout("reading was ended")
            raise RetryTimeout(str(reason)) from reason.__cause__

    def give_up(self, reason: RetryTimeout) -> RetryTimeout:
        """End all requests, and return the error that is the reason."""
        with self.changed:
            self._ended_by = self._ended_by or reason
        self.close()
        return reason

    def close(self) -> None:
        """End all requests: callers stop waiting at once, and each thread ends after its attempt."""
        if self._n_threads == 0:
            return
        with self.changed:
            self._closed.set()
            self.changed.notify_all()
            n_running, self._n_running = self._n_running, 0
        for _ in range(n_running):
            self._queue.put(None)


class Request(Generic[T]):
    """One request: one thread makes the attempts, another waits for the result."""

    def __init__(self, retries: Retries, attempt: Callable[[], T]) -> None:
        self._retries = retries
        self._attempt: Callable[[], T] | None = attempt
        self._n_attempts = 0
        self._started: float | None = None
        self._cause: BaseException | None = None
        self._error: BaseException | None = None
        self._value: T
        self._is_done = False

    def run(self) -> None:
        """Make attempts until one succeeds, the error is final, or the deadline has passed."""
        retries = self._retries
        with retries.changed:
            self._started = retries.clock()
            retries.changed.notify_all()
        deadline = self._started + retries.deadline_s
        waits = delays(deadline, clock=retries.clock, draw=retries.draw)
        try:
            while not self._try_once():
                delay = next(waits, None)
                if delay is None or self._cause is None:
                    raise retries.give_up(self._timeout("the last one failed"))
                retries.note_failure(self._cause, delay, self._n_attempts, deadline - retries.clock())
                if retries.sleep(delay):
                    retries.check_open()
        except BaseException as error:
            self._error = error
        finally:
            self._attempt = None
            with retries.changed:
                self._is_done = True
                retries.changed.notify_all()

    def _try_once(self) -> bool:
        assert self._attempt is not None
        self._n_attempts += 1
        try:
            self._value = self._attempt()
        except Exception as cause:
            if self._retries.deadline_s == 0 or not is_transient(cause, was_reached=self._retries.was_reached):
                raise
            self._cause = cause
            return False
        self._retries.note_success()
        return True

    def _timeout(self, ending: str) -> RetryTimeout:
        retries, n = self._retries, self._n_attempts
        elapsed_s = retries.clock() - (self._started or 0.0)
        reason = "" if self._cause is None else f": {retries.message_of(self._cause)}"
        if self._cause is not None and (advice := advice_for(str(self._cause))) is not None:
            reason += f". {advice[0].upper()}{advice[1:]}"
        error = RetryTimeout(
            f"gave up after {n} attempt{'s' if n != 1 else ''} in {elapsed_s:.1f} s "
            f"(retry_deadline_s={retries.deadline_s:g}), {ending}{reason}"
        )
        error.__cause__ = None if self._cause is None else public_cause(self._cause, retries.secrets)
        return error

    def result(self) -> T:
        """Wait for the result, at most until the deadline; raise the error of the request if it failed."""
        retries = self._retries
        with retries.changed:
            while not self._is_done:
                retries.check_open()
                left_s = None
                if self._started is not None and retries.deadline_s > 0:
                    left_s = self._started + retries.deadline_s + GRACE_S - retries.clock()
                    if left_s <= 0:
                        before = ", one before it failed" if self._cause else ""
                        raise retries.give_up(self._timeout(f"the last one was not answered{before}"))
                retries.changed.wait(left_s)
        if self._error is not None:
            raise self._error
        return self._value


@atexit.register
def _end_threads() -> None:
    """Wait for threads that run TileDB: TileDB crashes if the process ends during a call."""
    for retries in list(_all_retries):
        retries.close()
    for thread in list(_threads):
        thread.join()


NO_RETRY = Retries(0.0)
"""Makes one attempt, in the thread of the caller."""


def _renew_lock() -> None:
    """Replace the lock in a forked child: a thread of the parent may have held it."""
    NO_RETRY.changed = threading.Condition()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
