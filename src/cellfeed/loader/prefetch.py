"""Run a generator ahead of its consumer, in a thread that ends with the consumer."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_START_S = 1.0
"""Seconds to wait for a thread whose start was interrupted; a thread that has not begun then never begins."""

_POLL_S = 0.1
"""Seconds after which a producer with a full queue checks whether to stop."""

_collecting: set[int] = set()
"""Numbers of the threads in which the garbage collector runs."""


class _End:
    """The last item of a producer, with the error that ended it, if any."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Prefetch(Iterator[T], Generic[T]):
    """Iterate over ``source`` in a thread, up to ``depth`` items ahead.

    The thread ends when the source ends, when :meth:`close` is called, when this object is collected, and when the
    interpreter exits. It closes the source before it ends, and these calls return after that; only the garbage
    collector does not wait for it. An error of the source is raised by ``next`` after the items before it, unchanged.

    Parameters
    ----------
    source
        Generator; this object owns and closes it.
    depth
        Maximum number of items in the queue; the source may make one more meanwhile.
    ending
        Function to call before waiting for the thread to end; it may interrupt the source.
    waited
        Function to call per item with the seconds that the item waited for room in the queue.

    Examples
    --------
    >>> list(Prefetch((n * n for n in range(4)), depth=1))
    [0, 1, 4, 9]
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
        # The thread must not refer to this object, which would never be collected then.
        thread = threading.Thread(
            target=_produce, args=(source, self._items, stop, waited), name="cellfeed-prefetch", daemon=True
        )
        # Made before the thread starts: an interrupt may come between any two lines, and the thread must still end.
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
        """End the thread and close the source; a second call does nothing."""
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
                del item  # a reference here would keep its memory after the consumer released it
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
    if os.getpid() != process:  # a forked process has no such thread, and locks that it held are never released
        return
    stop.set()
    ending()
    with contextlib.suppress(queue.Empty):  # makes room for a producer that waits
        while True:
            items.get_nowait()
    if threading.get_ident() in _collecting:
        # It may run in a thread for which the source waits, or which holds a lock that the source needs.
        atexit.register(_join, thread)
    elif thread is not threading.current_thread():
        _join(thread)


def _join(thread: threading.Thread) -> None:
    """Wait until a thread ends; if its start was interrupted, it may never begin."""
    deadline = time.monotonic() + _START_S
    while thread.ident is None and thread in threading.enumerate() and time.monotonic() < deadline:
        time.sleep(_START_S / 1000)
    if thread.ident is not None:
        thread.join()


def _note_collection(
    phase: str, *_: object, collecting: set[int] = _collecting, thread: Any = threading.get_ident
) -> None:
    """Keep the numbers of threads; the arguments exist at the end of the interpreter, when the module may not."""
    (collecting.add if phase == "start" else collecting.discard)(thread())


gc.callbacks.append(_note_collection)
