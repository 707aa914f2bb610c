"""A thread that reads ahead, and ends with its consumer."""

import contextlib
import gc
import itertools
import queue
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from cellfeed.loader.prefetch import Prefetch
from tests.support.processes import PATIENCE_S


@pytest.fixture
def n_threads():
    """The number of threads that have begun in this test and have not ended."""
    earlier = set(threading.enumerate())
    return lambda: sum(t.name == "cellfeed-prefetch" and t not in earlier for t in threading.enumerate())


def counting(n, log):
    try:
        for i in range(n):
            log.append(i)
            yield i
    finally:
        log.append("closed")


@pytest.mark.parametrize("depth", [1, 3])
def test_items_come_in_order_and_the_source_is_closed(depth, n_threads):
    log = []
    assert list(Prefetch(counting(10, log), depth=depth)) == list(range(10))
    assert log[-1] == "closed"
    assert n_threads() == 0


def test_it_reads_ahead_no_further_than_depth():
    """Of three items that were not requested, two are in the queue and the thread holds one."""
    n_asked, ahead_by, three_made = 0, [], threading.Event()

    def source():
        for i in range(100):
            ahead_by.append(i + 1 - n_asked)
            if i == 2:
                three_made.set()
            yield i

    ahead = Prefetch(source(), depth=2)
    three_made.wait()
    for i in range(100):
        n_asked += 1
        assert next(ahead) == i
    assert max(ahead_by) == 3


def test_an_error_comes_in_its_turn_as_itself(n_threads):
    def source():
        yield 1
        raise KeyError("cell") from OSError("disk")

    ahead = Prefetch(source(), depth=1)
    assert next(ahead) == 1
    with pytest.raises(KeyError, match="cell") as caught:
        next(ahead)
    assert isinstance(caught.value.__cause__, OSError)
    assert list(ahead) == []
    assert n_threads() == 0


@pytest.mark.parametrize("how", ["close", "collect"])
def test_the_thread_ends_before_its_source_does(how, n_threads):
    log = []
    ahead = Prefetch(counting(10**6, log), depth=1)
    next(ahead)
    if how == "close":
        ahead.close()
    del ahead
    gc.collect()
    assert n_threads() == 0
    assert log[-1] == "closed"


def test_the_garbage_collector_waits_for_no_thread(n_threads):
    """It may run where a lock is held that the source needs, or in a thread for which the source waits."""
    lock, log = threading.Lock(), []

    def source():
        with contextlib.suppress(GeneratorExit):
            yield from itertools.count()
        with lock:
            log.append("closed")

    cycle = [Prefetch(source(), depth=1)]
    cycle.append(cycle)
    del cycle
    with lock:
        gc.collect()
        assert log == []
    while n_threads():
        time.sleep(0.01)
    assert log == ["closed"]


@pytest.mark.slow
def test_the_interpreter_exits_while_an_iterator_lives():
    code = (
        "from cellfeed.loader.prefetch import Prefetch\nimport itertools\n"
        "ahead = Prefetch((i for i in itertools.count()), depth=1)\nprint(next(ahead))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert done.stdout.strip() == "0"
    assert done.stderr == ""


def test_it_reports_how_long_items_waited_for_room(monkeypatch):
    """The clock advances by a second per item that the source makes, and by five per item that is queued."""
    clock = SimpleNamespace(now=0)
    put = queue.Queue.put

    def slow_put(*arguments, **options):
        clock.now += 5
        put(*arguments, **options)

    def source():
        for i in range(3):
            clock.now += 1
            yield i

    monkeypatch.setattr("cellfeed.loader.prefetch.time.perf_counter", lambda: clock.now)
    monkeypatch.setattr(queue.Queue, "put", slow_put)
    waits = []
    assert list(Prefetch(source(), depth=3, waited=waits.append)) == [0, 1, 2]
    assert waits == [5, 5, 5]


def test_an_interrupt_while_the_thread_starts_leaves_no_thread(monkeypatch, n_threads):
    """Ctrl-C may come just before or after the start of the thread; in both cases it ends and the source is closed."""
    start = threading.Thread.start

    def before(thread):
        raise KeyboardInterrupt

    def after(thread):
        start(thread)
        raise KeyboardInterrupt

    for interrupted in (before, after):
        log = []
        monkeypatch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Prefetch(counting(10**6, log), depth=1)
        monkeypatch.undo()
        gc.collect()
        assert n_threads() == 0
        assert log[-1:] == ([] if interrupted is before else ["closed"])
