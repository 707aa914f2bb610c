"""Transient errors are retried until a deadline; final errors are raised at once."""

import threading
from collections import Counter
from functools import partial
from itertools import islice, repeat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellfeed import ReadError
from cellfeed.errors import RetryTimeout
from cellfeed.sources.failures import advice_for, is_transient
from cellfeed.sources.redact import reraise_as
from cellfeed.sources.retry import FIRST_DELAY_S, MAX_DELAY_S, NO_RETRY, Retries, delays
from cellfeed.sources.soma.address import ArrayAddress
from cellfeed.sources.soma.experiment import retrying
from cellfeed.stats import Meter
from tests.support.processes import PATIENCE_S

SLOW_DOWN = "S3: Failed to read [Error Type: 19] [HTTP Response Code: 503] [Exception: SlowDown] : asked for"


class Clock:
    """A clock that advances in ``sleep`` only."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        return False


@given(
    deadline_s=st.floats(0, 1e4),
    draws=st.lists(st.floats(0, 1, exclude_max=True), min_size=1),
    work_s=st.floats(0.01, 9),
)
def test_delays_grow_and_end_at_the_deadline(deadline_s, draws, work_s):
    clock, drawn = Clock(), (draw for _ in repeat(None) for draw in draws)
    attempts = 0
    for k, delay in enumerate(islice(delays(deadline_s, clock=clock, draw=drawn.__next__), 10_000)):
        assert 0 <= delay <= min(FIRST_DELAY_S * 2 ** min(k, 60), MAX_DELAY_S)
        assert clock.now + delay <= deadline_s + 1e-6
        clock.sleep(delay + work_s)
        attempts += 1
    assert attempts == 10_000 or clock.now >= deadline_s


def test_delays_are_drawn_from_nothing_to_the_longest():
    """Full jitter: requests that failed together are repeated one by one."""
    assert list(islice(delays(1e9, clock=Clock(), draw=lambda: 0.0), 50)) == [0.0] * 50
    longest = list(islice(delays(1e9, clock=Clock(), draw=lambda: 1.0), 50))
    assert longest[:3] == [FIRST_DELAY_S, 2 * FIRST_DELAY_S, 4 * FIRST_DELAY_S]
    assert longest[-1] == MAX_DELAY_S


@pytest.mark.parametrize(
    ("text", "transient"),
    {
        SLOW_DOWN: True,
        "[HTTP Response Code: 500] [Exception: InternalError]": True,
        "[HTTP Response Code: -1] : curlCode: 28, Timeout was reached": True,
        "[HTTP Response Code: -1] : curlCode: 7, Could not connect to server": True,
        "[HTTP Response Code: 206] : curlCode: 18, Transferred a partial file": True,
        "[HTTP Response Code: 200] [Headers: 'content-length' = '272']": True,
        "[HTTP Response Code: 429] : too many": True,
        "[HTTP Response Code: 400] [Exception: RequestTimeout] : idle": True,
        "[HTTP Response Code: 400] [Exception: ExpiredToken]": False,
        "[HTTP Response Code: 403] [Exception: AccessDenied]": False,
        "[HTTP Response Code: 403] [Exception: RequestTimeTooSkewed]": False,
        "[HTTP Response Code: 404] : no such key, after curlCode: 7": False,
        "Cannot open array; Array does not exist": False,
        "the array 's3://b/X' is not the one from which cells were selected": False,
        "connection reset by peer": True,
        "[HTTP Response Code: 301] [Exception: PermanentRedirect]": False,
        "[HTTP Response Code: -1] : curlCode: 6, Couldn't resolve host name": False,
        "[HTTP Response Code: -1] : curlCode: 5, Couldn't resolve proxy name": False,
        "[HTTP Response Code: -1] : curlCode: 60, SSL peer certificate was not OK": False,
        "[HTTP Response Code: -1] : curlCode: 77, Problem with the SSL CA cert": False,
        "[HTTP Response Code: -1] : curlCode: 35, SSL connect error; TLS: wrong version number": False,
        "[HTTP Response Code: -1] : curlCode: 35, SSL connect error; Recv failure: Connection reset by peer": True,
        "[HTTP Response Code: 307] [Headers: 'location' = 'http://...'] : curlCode: 7, Could not connect": True,
        "[HTTP Response Code: -1] [Exception: ] : SDK failed to sign the request": False,
        "": False,
    }.items(),
)
def test_which_errors_may_pass(text, transient):
    assert is_transient(RuntimeError(text)) == transient


def failing(n, error=SLOW_DOWN, value="cells", clock=None, work_s=0.0):
    """An attempt that fails ``n`` times before it succeeds."""
    errors = repeat(error, n)

    def attempt():
        if clock is not None:
            clock.sleep(work_s)
        for text in errors:
            raise RuntimeError(text)
        return value

    return attempt


def with_clock(deadline_s, **options):
    clock = Clock()
    return Retries(deadline_s, clock=clock, sleep=clock.sleep, draw=lambda: 0.5, **options), clock


def test_what_fails_for_a_while_succeeds():
    meter = Meter()
    retries, clock = with_clock(120, meter=meter)
    assert retries.call(failing(6)) == "cells"
    stats = meter.snapshot()
    assert stats.n_retries == 6
    assert stats.retry_wait_s == pytest.approx(clock.now) == pytest.approx(sum([0.1, 0.2, 0.4, 0.8, 1.6, 2.5]))
    assert "6, after" in str(stats)


def test_at_the_deadline_the_error_has_attempts_seconds_and_cause():
    retries, clock = with_clock(10)
    with (
        pytest.raises(ReadError, match=r"reading cells failed: gave up after 9 attempts in 10\.1 s") as caught,
        reraise_as(ReadError, "reading cells failed"),
    ):
        retries.call(failing(1000, clock=clock, work_s=0.1))
    assert "(retry_deadline_s=10)" in str(caught.value)
    assert "SlowDown" in str(caught.value)
    assert "SlowDown" in str(caught.value.__cause__)


def test_final_errors_are_not_tried_again():
    retries, clock = with_clock(120, meter=(meter := Meter()))
    with pytest.raises(RuntimeError, match="403"):
        retries.call(failing(2, error="[HTTP Response Code: 403]"))
    assert clock.now == meter.snapshot().n_retries == 0


@pytest.mark.parametrize("retries", [NO_RETRY, Retries(0)])
def test_without_a_deadline_there_is_one_attempt(retries):
    with pytest.raises(RuntimeError, match="SlowDown"):
        retries.call(failing(1))


def test_logs_report_retries_without_secrets(caplog):
    caplog.set_level("INFO", logger="cellfeed.retry")
    retries, _ = with_clock(120, secrets=frozenset({"SESAME"}))
    retries.call(failing(2, error=SLOW_DOWN + " SESAME [Headers: 'date' = 'now'] https://me:pass@host/?key=1"))
    levels, texts = zip(*((record.levelname, record.getMessage()) for record in caplog.records), strict=True)
    assert levels == ("WARNING", "INFO", "INFO")
    assert all(word not in text for word in ("SESAME", "pass@", "key=1", "Headers") for text in texts)
    assert texts[0].startswith("attempt 1 failed, the next is in 0.1 s, the last in 120 s: S3: Failed to read")
    assert texts[-1] == "the store answers again"


@pytest.fixture
def threads():
    """Requests in threads that end afterwards."""
    made = []

    def make(deadline_s, n_threads=2, **options):
        made.append(Retries(deadline_s, n_threads=n_threads, **options))
        return made[-1]

    before = set(threading.enumerate())
    yield make
    for retries in made:
        retries.close()
    for thread in set(threading.enumerate()) - before:
        thread.join()


def test_several_requests_are_under_way(threads):
    retries = threads(10, n_threads=3)
    together = threading.Barrier(3, timeout=PATIENCE_S)
    requests = [retries.start(together.wait) for _ in range(3)]
    assert sorted(request.result() for request in requests) == [0, 1, 2]


def test_an_attempt_that_does_not_return_is_given_up(threads, monkeypatch):
    monkeypatch.setattr("cellfeed.sources.retry.GRACE_S", 0.1)
    retries, release = threads(0.2), threading.Event()
    with pytest.raises(RetryTimeout, match=r"gave up after 1 attempt in \d+\.\d s .*was not answered"):
        retries.call(release.wait)
    release.set()


def test_one_request_that_is_given_up_ends_all(threads):
    """Requests that wait for a thread are given up, too, instead of at deadlines of their own."""
    clock, attempts = Clock(), Counter()

    def sleep(seconds):
        clock.sleep(seconds)
        return retries._closed.is_set()

    retries = threads(10, n_threads=1, clock=clock, sleep=sleep)

    def attempt(k):
        attempts[k] += 1
        raise RuntimeError(SLOW_DOWN)

    requests = [retries.start(partial(attempt, k)) for k in range(20)]
    for request in requests:
        with pytest.raises(RetryTimeout, match="SlowDown"):
            request.result()
    assert attempts[0] > 1
    assert all(attempts[k] <= 1 for k in range(1, 20))


def test_closing_ends_all_waiting(threads):
    retries, begun = threads(1000), threading.Event()

    def attempt():
        begun.set()
        raise RuntimeError(SLOW_DOWN)

    requests = [retries.start(attempt) for _ in range(5)]
    begun.wait()
    retries.close()
    for request in requests:
        with pytest.raises(RetryTimeout, match="reading was ended"):
            request.result()


@pytest.mark.parametrize(
    ("text", "setting"),
    {
        "[HTTP Response Code: 301] [Headers: 'x-amz-bucket-region' = 'eu-west-1']": "set vfs.s3.region=eu-west-1",
        "[HTTP Response Code: 301] [Exception: PermanentRedirect]": "vfs.s3.region",
        "[HTTP Response Code: -1] : curlCode: 6, Couldn't resolve host name": "vfs.s3.endpoint_override",
        "[HTTP Response Code: -1] : curlCode: 5, Couldn't resolve proxy name": "vfs.s3.proxy_host",
        "[HTTP Response Code: -1] : curlCode: 60, SSL peer certificate": "vfs.s3.ca_file",
        "[HTTP Response Code: -1] : SDK failed to sign the request": "vfs.s3.no_sign_request",
        "[HTTP Response Code: 403] [Exception: AccessDenied]": "vfs.s3.no_sign_request",
        "[HTTP Response Code: 400] [Headers: 'x-amz-bucket-region' = 'eu-west-1'] AuthorizationHeaderMalformed": (
            "set vfs.s3.region=eu-west-1"
        ),
        "[HTTP Response Code: 400] [Exception: ExpiredToken]": "credentials have expired",
        "[HTTP Response Code: 403] [Exception: RequestTimeTooSkewed]": "clock of this machine",
        "[HTTP Response Code: 404] [Exception: NoSuchBucket]": "no such bucket",
        "[HTTP Response Code: -1] : curlCode: 35, SSL connect error; TLS: wrong version number": "vfs.s3.scheme",
    }.items(),
)
def test_what_a_setting_mends_is_final_and_names_the_setting(text, setting):
    """The most common first mistakes: tried again for two minutes they would look like a network that is down."""
    attempts = []

    def attempt():
        attempts.append(1)
        raise RuntimeError(text)

    with pytest.raises(ReadError) as raised, reraise_as(ReadError, "reading failed"):
        Retries(60.0, sleep=Clock().sleep).call(attempt)
    assert setting in str(raised.value)
    assert len(attempts) == 1


LOST = "[HTTP Response Code: -1] : curlCode: 6, Could not resolve hostname"


def test_a_host_that_was_found_before_may_be_found_again():
    """Where the store was reached with the same settings, the settings are right and the network is not."""
    lost = RuntimeError(LOST)
    assert is_transient(lost, was_reached=True)
    assert not is_transient(RuntimeError("[HTTP Response Code: 301] PermanentRedirect"), was_reached=True)
    assert advice_for("[HTTP Response Code: 503] [Exception: SlowDown]") is None


def test_a_store_was_reached_after_the_first_success_and_by_a_selection():
    """Also in a worker process that has made no request yet; the success of another store does not count."""
    retries, _ = with_clock(60)
    with pytest.raises(RuntimeError, match="resolve"):
        retries.call(failing(1, LOST))
    assert retries.call(failing(0)) == "cells"
    assert retries.call(failing(3, LOST)) == "cells"
    assert not Retries(60).was_reached
    address = ArrayAddress("s3://bucket/X", 1, {})
    assert address.retries().was_reached
    with retrying("s3://bucket/cells", None, 60, Meter()) as first:
        assert not first.was_reached


def test_at_the_deadline_a_network_that_needs_a_proxy_names_its_settings():
    """Nothing is final there, as the network may be down; many clusters reach S3 through a proxy only."""
    retries, _ = with_clock(10)
    with pytest.raises(RetryTimeout, match=r"Timeout was reached. If this machine.*vfs.s3.proxy_host"):
        retries.call(failing(1000, "[HTTP Response Code: -1] : curlCode: 28, Timeout was reached"))


def test_an_error_says_what_tiledb_says_without_the_heads_of_the_response():
    with pytest.raises(ReadError) as caught, reraise_as(ReadError, "reading failed"):
        raise RuntimeError("S3: no [HTTP Response Code: 418] [Remote IP: 127.0.0.1] [Headers: 'date' = 'x'] : teapot")
    assert str(caught.value) == "reading failed: S3: no [HTTP Response Code: 418] : teapot"


def test_the_log_says_how_much_time_is_left(caplog):
    clock = Clock()
    answers = iter([RuntimeError(SLOW_DOWN), RuntimeError(SLOW_DOWN), None])

    def attempt():
        if (error := next(answers)) is not None:
            raise error
        return 7

    with caplog.at_level("INFO", logger="cellfeed.retry"):
        assert Retries(60.0, clock=clock, sleep=clock.sleep, draw=lambda: 1.0).call(attempt) == 7
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0].startswith("attempt 1 failed, the next is in 0.2 s, the last in 60 s: ")
    assert messages[-1] == "the store answers again"
