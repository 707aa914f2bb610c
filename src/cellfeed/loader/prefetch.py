"""Run an iterator ahead of its consumer, in a thread that ends with it."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

_START_S = 1.0
"""Seconds within which a thread begins whose start was interrupted, unless it never does."""

_POLL_S = 0.1
"""How often a producer with a full queue looks whether it shall stop."""


class _End:
    """What the producer sends last: nothing more comes, or the error that ended it."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Prefetch(Iterator[T], Generic[T]):
    """Iterate over ``source`` in a thread of its own, up to ``depth`` items ahead.

    The thread ends when the source ends, when :meth:`close` is called, when this object is collected
    and at interpreter exit; it closes the source before it ends, and no call returns before that. An
    error of the source is raised by ``next``, as itself, in its turn.

    Parameters
    ----------
    source
        A generator; this object owns it from now on.
    depth
        Items that wait at most; one more may be in the making.
    ending
        Called before anybody waits for the thread to end, so that it may.
    waited
        Told, item by item, the seconds that one was ready and found no room.
    """

    def __init__(
        self,
        source: Generator[T, None, None],
        *,
        depth: int,
        ending: Callable[[], None] = lambda: None,
        waited: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self._items: queue.Queue[T | _End] = queue.Queue(maxsize=depth)
        self._ended = False
        stop = threading.Event()
        # The thread must not hold this object, or it would never be collected.
        thread = threading.Thread(
            target=_produce, args=(source, self._items, stop, waited), name="cellfeed-prefetch", daemon=True
        )
        # Before the thread is there: an interrupt may come between any two lines, and the thread must end then, too.
        self._finalizer = weakref.finalize(self, _shut_down, thread, self._items, stop, ending, os.getpid())
        thread.start()

    def __next__(self) -> T:
        if self._ended:
            raise StopIteration
        item = self._items.get()
        if not isinstance(item, _End):
            return item
        self.close()
        if item.error is not None:
            raise item.error
        raise StopIteration

    def close(self) -> None:
        """End the thread and close the source; calling it again does nothing."""
        self._ended = True
        self._finalizer()


def _produce(
    source: Generator[T, None, None],
    items: queue.Queue[T | _End],
    stop: threading.Event,
    waited: Callable[[float], None],
) -> None:
    end = _End(None)
    try:
        with contextlib.closing(source):
            for item in source:
                ready = time.perf_counter()
                if not _put(items, item, stop):
                    return
                waited(time.perf_counter() - ready)
                del item  # what waits in the queue is the consumer's; keep no second hold on it
    except BaseException as error:
        end = _End(error)
    _put(items, end, stop)


def _put(items: queue.Queue[T | _End], item: T | _End, stop: threading.Event) -> bool:
    while not stop.is_set():
        with contextlib.suppress(queue.Full):
            items.put(item, timeout=_POLL_S)
            return True
    return False


def _shut_down(
    thread: threading.Thread,
    items: queue.Queue[T | _End],
    stop: threading.Event,
    ending: Callable[[], None],
    process: int,
) -> None:
    if os.getpid() != process:  # forked since: the thread is not here, and may have held locks that stay closed
        return
    stop.set()
    ending()
    with contextlib.suppress(queue.Empty):  # wake a producer that waits for room
        while True:
            items.get_nowait()
    if thread is not threading.current_thread():
        _join(thread)


def _join(thread: threading.Thread) -> None:
    """Wait until a thread ends, which may not have begun: its start may have been interrupted."""
    deadline = time.monotonic() + _START_S
    while thread.ident is None and thread in threading.enumerate() and time.monotonic() < deadline:
        time.sleep(_START_S / 1000)
    if thread.ident is not None:
        thread.join()
