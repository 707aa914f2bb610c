"""The proxy causes the faults that it is set to cause; the tests of the network rely on it."""

import asyncio
import http.client
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from tests.support import fault_proxy
from tests.support.fault_proxy import FaultProxy, ProxyProcess

BODY = bytes(range(256)) * 2048  # 512 KiB


class Store(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        self.wfile.write(BODY)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def upstream():
    with ThreadingHTTPServer(("127.0.0.1", 0), Store) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture(params=[FaultProxy, ProxyProcess])
def any_proxy(request, upstream):
    with request.param(upstream) as proxy:
        yield proxy


@pytest.fixture
def proxy(upstream):
    with FaultProxy(upstream, seed=1) as proxy:
        yield proxy


def ask(proxy, path="/cells", method="GET", timeout=10):
    """Return the status and body of one request on a connection of its own."""
    connection = http.client.HTTPConnection(proxy.endpoint, timeout=timeout)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def outcome(proxy, **options):
    try:
        return ask(proxy, **options)[0]
    except (http.client.IncompleteRead, OSError) as error:
        return type(error).__name__


def test_without_faults_it_only_passes_on(any_proxy):
    assert ask(any_proxy) == (200, BODY)
    assert ask(any_proxy, method="HEAD") == (200, b"")
    assert any_proxy.counts["requests"] == 2
    assert any_proxy.counts["bytes"] == len(BODY)


def test_an_outage_and_its_end(any_proxy):
    """The open connection is reset and new ones are refused; afterwards the proxy answers again at the same port."""
    connection = http.client.HTTPConnection(any_proxy.endpoint, timeout=10)
    connection.request("GET", "/cells")
    connection.getresponse().read()
    any_proxy.set(down=True)
    assert outcome(any_proxy) == "ConnectionRefusedError"
    with pytest.raises(ConnectionError):
        connection.request("GET", "/cells")
        connection.getresponse()
    connection.close()
    any_proxy.set()
    assert ask(any_proxy) == (200, BODY)


def test_connections_stay_open_between_requests(proxy):
    connection = http.client.HTTPConnection(proxy.endpoint, timeout=10)
    connection.request("GET", "/cells")
    connection.getresponse().read()
    socket = connection.sock
    connection.request("GET", "/cells")
    assert connection.getresponse().read() == BODY
    assert connection.sock is socket
    connection.close()


@pytest.fixture
def waits(monkeypatch):
    """The seconds of each wait of a proxy, which does not really wait."""
    seconds, sleep = [], asyncio.sleep

    def note(delay):
        seconds.append(delay)
        return sleep(0)

    monkeypatch.setattr(asyncio, "sleep", note)
    return seconds


def test_latency(proxy, waits):
    proxy.set(latency_s=0.1, jitter_s=0.05)
    for _ in range(10):
        assert ask(proxy)[1] == BODY
    before_answers = [wait for wait in waits if wait > 0]
    assert len(set(before_answers)) == 10
    assert all(0.05 <= wait <= 0.15 for wait in before_answers)


def test_bandwidth_is_that_of_all_connections_together(proxy, waits, monkeypatch):
    """With a clock that stands still, the last piece waits for the transfer of all pieces."""
    monkeypatch.setattr(fault_proxy, "time", SimpleNamespace(monotonic=lambda: 0.0))
    proxy.set(bandwidth=4 * len(BODY))
    threads = [threading.Thread(target=ask, args=(proxy,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(waits) == pytest.approx(1.0)


def test_slicer(proxy, waits):
    proxy.set(slicer_bytes=len(BODY) // 32, slicer_delay_s=0.02)
    assert ask(proxy)[1] == BODY
    assert waits.count(0.02) >= 31  # the pause after the last piece may begin after the client has read it


def test_timeout(proxy):
    proxy.set(timeout=1.0)
    assert outcome(proxy, timeout=0.1) == "TimeoutError"


def test_limit_data(proxy):
    proxy.set(limit_data=1000)
    with pytest.raises(http.client.IncompleteRead) as caught:
        ask(proxy)
    assert caught.value.partial == BODY[:1000]


def test_limit_share(proxy):
    proxy.set(limit_data=1000, limit_share=0.5)
    outcomes = [outcome(proxy) for _ in range(30)]
    assert set(outcomes) == {200, "IncompleteRead"}
    assert proxy.counts["limit_data"] == outcomes.count("IncompleteRead")


def test_a_slow_close_comes_after_the_last_byte(proxy, waits):
    proxy.set(limit_data=1000, slow_close_s=0.2)
    assert outcome(proxy) == "IncompleteRead"
    assert waits[-1] == 0.2


def test_resets_of_a_share(proxy):
    proxy.set(reset=0.5)
    outcomes = [outcome(proxy) for _ in range(30)]
    assert set(outcomes) == {200, "ConnectionResetError"}
    assert proxy.counts["reset"] == outcomes.count("ConnectionResetError")
    assert 5 < proxy.counts["reset"] < 25


@pytest.mark.parametrize("status", [403, 404, 500, 503])
def test_errors_of_a_share_where_the_path_matches(proxy, status):
    proxy.set(error=1.0, status=status, only="X/raw")
    assert ask(proxy, "/ms/RNA/X/raw")[0] == status
    assert ask(proxy, "/obs") == (200, BODY)
    host, port = proxy.endpoint.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection, connection.makefile("rb") as answers:
        connection.sendall(b"".join(b"%b /X/raw HTTP/1.1\r\n\r\n" % method for method in (b"HEAD", b"GET")))
        while answers.readline().strip():
            pass
        assert answers.readline().startswith(b"HTTP/1.1 %d" % status)  # the answer to HEAD has no body
    assert proxy.counts["error"] == 3
    proxy.set()
    assert ask(proxy, "/ms/RNA/X/raw") == (200, BODY)


def test_chance_is_seeded(upstream):
    """A sequence of requests gets the same faults in each run."""
    runs = []
    for _ in range(2):
        with FaultProxy(upstream, seed=7) as proxy:
            proxy.set(error=0.5)
            runs.append([outcome(proxy) for _ in range(20)])
    assert runs[0] == runs[1]
    assert set(runs[0]) == {200, 503}
