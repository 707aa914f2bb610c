"""A thread that reads ahead, and ends."""

import gc
import subprocess
import sys
import threading
import time

import pytest

from cellfeed.loader.prefetch import Prefetch


def n_threads():
    return sum(t.name == "cellfeed-prefetch" for t in threading.enumerate())


def counting(n, log):
    try:
        for i in range(n):
            log.append(i)
            yield i
    finally:
        log.append("closed")


@pytest.mark.parametrize("depth", [1, 3])
def test_items_come_in_order_and_the_source_is_closed(depth):
    log = []
    assert list(Prefetch(counting(10, log), depth=depth)) == list(range(10))
    assert log[-1] == "closed"
    assert n_threads() == 0


def test_it_reads_ahead_no_further_than_depth():
    log = []
    ahead = Prefetch(counting(100, log), depth=2)
    time.sleep(0.3)
    assert log == [0, 1, 2]  # two wait, one is held by the thread
    assert next(ahead) == 0
    ahead.close()


def test_an_error_comes_in_its_turn_as_itself():
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
def test_the_thread_ends_before_its_source_does(how):
    log = []
    ahead = Prefetch(counting(10**6, log), depth=1)
    next(ahead)
    if how == "close":
        ahead.close()
    del ahead
    gc.collect()
    assert n_threads() == 0
    assert log[-1] == "closed"


def test_the_interpreter_exits_while_an_iterator_lives():
    code = (
        "from cellfeed.loader.prefetch import Prefetch\nimport itertools\n"
        "ahead = Prefetch((i for i in itertools.count()), depth=1)\nprint(next(ahead))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "0"
    assert done.stderr == ""


def test_it_tells_how_long_items_waited_for_room():
    waits = []
    ahead = Prefetch(counting(3, []), depth=1, waited=waits.append)
    time.sleep(0.3)
    assert list(ahead) == [0, 1, 2]
    assert len(waits) == 3
    assert waits[1] > 0.2


def test_an_interrupt_while_the_thread_starts_leaves_no_thread(monkeypatch):
    """Ctrl-C may come just before or just after the thread begins; it ends all the same, and the source is closed."""
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
