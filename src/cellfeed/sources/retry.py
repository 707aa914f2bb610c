"""Requests to an object store, tried again while it fails for a while, and given up at a deadline."""

from __future__ import annotations

import atexit
import logging
import os
import queue
import random
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from cellfeed._checks import is_number
from cellfeed.errors import PlanError, RetryTimeout
from cellfeed.sources.backoff import delays
from cellfeed.sources.failures import advice_for, is_transient, readable
from cellfeed.sources.redact import public_cause, redacted
from cellfeed.stats import Meter

logger = logging.getLogger("cellfeed.sources.retry")

T = TypeVar("T")


GRACE_S = 1.0
"""Seconds that an attempt which begins at the deadline has left."""


RETRY_DEADLINE_S = 120.0
"""Seconds after which a request to an object store is given up, unless the user says otherwise."""

MAX_DEADLINE_S = 1e6

_at_work: weakref.WeakSet[Retries] = weakref.WeakSet()
_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


def check_deadline(retry_deadline_s: float) -> None:
    """Check the seconds within which a request must succeed."""
    if not is_number(retry_deadline_s) or not 0 <= retry_deadline_s <= MAX_DEADLINE_S:
        raise PlanError(
            f"retry_deadline_s={retry_deadline_s!r} must be a number of seconds from 0, which tries once, to "
            f"{MAX_DEADLINE_S:g}"
        )


class Retries:
    """Runs requests in threads of its own, each until it succeeds, fails for good or has reached the deadline.

    TileDB tries a request five times within a second, but one that is answered by "slow down" for two minutes and a
    half, whatever it is told. So nobody waits for TileDB: whoever asked is told at the deadline, and the thread is left
    to end when it can. What an attempt writes to must not be used again after :class:`RetryTimeout`.

    With one request all others are given up: nobody would use what they bring.

    Parameters
    ----------
    deadline_s
        Seconds from the begin of a request after which it is given up; 0 tries once, however long that takes.
    n_threads
        Requests under way at once; 0 makes them in the thread that asks.
    meter
        Told of attempts that failed and of the waiting before the next.
    secrets
        Not to be told in messages.
    was_reached
        Whether the store was reached before with the same settings; so it is after the first success.
    clock, sleep, draw
        Of tests. ``sleep`` says whether waiting has become pointless.
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
        self._failing = False
        _at_work.add(self)

    def call(self, attempt: Callable[[], T]) -> T:
        """Return what an attempt returns once one succeeds."""
        return self.start(attempt).result()

    def start(self, attempt: Callable[[], T]) -> Request[T]:
        """Begin a request; its ``result()`` waits for it."""
        request = Request(self, attempt)
        if self._n_threads == 0:
            request.run()
            return request
        self._queue.put(request)
        with self.changed:
            needed = self._n_running < self._n_threads
            self._n_running += needed
        if needed:
            thread = threading.Thread(target=self._run, name="cellfeed-request", daemon=True)
            _threads.add(thread)
            thread.start()
        return request

    def _run(self) -> None:
        while (request := self._queue.get()) is not None:
            request.run()
            del request  # its result belongs to whoever asked

    def note_failure(self, cause: BaseException, delay: float, n_attempts: int, left_s: float) -> None:
        """Count an attempt that failed, and tell the log: the first of an outage as a warning."""
        if self._meter is not None:
            self._meter.add(n_retries=1, retry_wait_s=delay)
        level = logging.INFO if self._failing else logging.WARNING
        self._failing = True
        logger.log(
            level,
            "attempt %d failed, the next is in %.1f s, the last in %.0f s: %s",
            n_attempts, delay, left_s, self.told(cause),
        )  # fmt: skip

    def note_success(self) -> None:
        """Tell the log that what failed succeeds again."""
        self.was_reached = True
        if self._failing:
            self._failing = False
            logger.info("the store answers again")

    def told(self, cause: BaseException) -> str:
        """Return what an error says, without what nobody needs to read, or may."""
        return readable(redacted(cause, self.secrets)) or type(cause).__name__

    def check_open(self) -> None:
        """Raise the reason for which all requests were ended, if they were."""
        if self._closed.is_set():
            reason = self._ended_by or RetryTimeout("reading was ended")
            raise RetryTimeout(str(reason)) from reason.__cause__

    def give_up(self, reason: RetryTimeout) -> RetryTimeout:
        """End all requests for some reason, and return it."""
        with self.changed:
            self._ended_by = self._ended_by or reason
        self.close()
        return reason

    def close(self) -> None:
        """End the waiting for all requests at once, and the threads as soon as each can."""
        if self._n_threads == 0:
            return  # it has nothing to end
        with self.changed:
            self._closed.set()
            self.changed.notify_all()
            n_running, self._n_running = self._n_running, 0
        for _ in range(n_running):
            self._queue.put(None)


class Request(Generic[T]):
    """One request under way: attempts in one thread, and somebody who waits for them in another."""

    def __init__(self, retries: Retries, attempt: Callable[[], T]) -> None:
        self._retries = retries
        self._attempt: Callable[[], T] | None = attempt
        self._n_attempts = 0
        self._began: float | None = None
        self._cause: BaseException | None = None
        self._error: BaseException | None = None
        self._value: T
        self._done = False

    def run(self) -> None:
        """Make attempts until one succeeds, or it makes no sense any more."""
        retries = self._retries
        with retries.changed:
            self._began = began = retries.clock()
            retries.changed.notify_all()
        waits = delays(began + retries.deadline_s, clock=retries.clock, random=retries.draw)
        try:
            while not self._try_once():
                delay = next(waits, None)
                if delay is None or self._cause is None:
                    raise retries.give_up(self._given_up("the last one failed"))
                left_s = began + retries.deadline_s - retries.clock()
                retries.note_failure(self._cause, delay, self._n_attempts, left_s)
                if retries.sleep(delay):
                    retries.check_open()
        except BaseException as error:
            self._error = error
        finally:
            self._attempt = None
            with retries.changed:
                self._done = True
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

    def _given_up(self, what: str) -> RetryTimeout:
        retries, n = self._retries, self._n_attempts
        passed = retries.clock() - (self._began or 0.0)
        reason = "" if self._cause is None else f": {retries.told(self._cause)}"
        if self._cause is not None and (setting := advice_for(str(self._cause))) is not None:
            reason += f". {setting[0].upper()}{setting[1:]}"
        error = RetryTimeout(
            f"gave up after {n} attempt{'s' if n != 1 else ''} in {passed:.1f} s "
            f"(retry_deadline_s={retries.deadline_s:g}), {what}{reason}"
        )
        error.__cause__ = None if self._cause is None else public_cause(self._cause, retries.secrets)
        return error

    def result(self) -> T:
        """Wait for the request, to its deadline at most; a failure that is final is raised as it is."""
        retries = self._retries
        with retries.changed:
            while not self._done:
                retries.check_open()
                left = None
                if self._began is not None and retries.deadline_s > 0:
                    left = self._began + retries.deadline_s + GRACE_S - retries.clock()
                    if left <= 0:
                        before = ", one before it failed" if self._cause else ""
                        raise retries.give_up(self._given_up(f"the last one was not answered{before}"))
                retries.changed.wait(left)
        if self._error is not None:
            raise self._error
        return self._value


@atexit.register
def _end_threads() -> None:
    """Wait for threads that are in TileDB: it crashes if the process ends under it."""
    for retries in list(_at_work):
        retries.close()
    for thread in list(_threads):
        thread.join()


NO_RETRY = Retries(0.0)
"""Tries once, in the thread that asks."""


def _renew_lock() -> None:
    """Give a forked child a lock of its own: a thread of the parent may have held it."""
    NO_RETRY.changed = threading.Condition()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
