"""A proxy before an object store that causes network faults, named as in toxiproxy, and changed while it runs.

    with FaultProxy(s3.endpoint) as proxy:  # or ProxyProcess: a benchmark must not share its interpreter's lock
        proxy.set(latency_s=0.05, bandwidth=40e6)

It speaks HTTP/1.1 to the client, whose connections stay open as they do with S3, and opens a connection to the server
for each request.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PIECE = 1 << 16
"""Bytes of a body that are forwarded at a time."""

ROOT = Path(__file__).resolve().parents[2]
CODES = {403: "AccessDenied", 404: "NoSuchKey", 500: "InternalError", 503: "SlowDown"}
"""The error codes of S3 by HTTP status."""


@dataclass(frozen=True)
class Faults:
    """The faults of requests; shares are probabilities per request, drawn with the proxy's seed."""

    latency_s: float = 0.0  # before each response
    jitter_s: float = 0.0  # largest deviation from the latency, in both directions
    bandwidth: float | None = None  # bytes of bodies per second, over all connections
    timeout: float = 0.0  # share of requests that are never answered
    slicer_bytes: int | None = None  # size of the pieces in which bodies are sent
    slicer_delay_s: float = 0.0  # pause after each piece
    limit_data: int | None = None  # bodies end after this number of bytes, although the head announced more
    limit_share: float = 1.0  # share of bodies that are cut
    reset: float = 0.0  # share of requests whose connection is reset (RST) at a random place of the body
    slow_close_s: float = 0.0  # delay before a connection is closed
    error: float = 0.0  # share of requests that are answered by an error
    status: int = 503  # HTTP status of this error
    down: bool = False  # connections are refused, and open ones are reset
    only: str = ""  # only requests whose path contains this text have faults


CALM = Faults()


class FaultProxy:
    """A proxy on a free port of the loopback, with a thread and a loop of its own.

    ``endpoint`` is its host and port. ``counts`` has the number of ``requests``, of ``bytes`` of forwarded bodies, and
    of faults by name.
    """

    def __init__(self, upstream: str, *, seed: int = 0) -> None:
        self._upstream = upstream.split(":")
        self._random = random.Random(seed)
        self._faults = CALM
        self._counts: Counter[str] = Counter()
        self._open: set[asyncio.StreamWriter] = set()
        self._handlers: set[asyncio.Task[None]] = set()
        self._free_at = 0.0
        self._server: asyncio.Server | None = None
        # A bound socket that never listens keeps the port while the proxy is down.
        self._holder = socket.socket()
        self._holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._holder.bind(("127.0.0.1", 0))
        self._port = self._holder.getsockname()[1]
        self.endpoint = f"127.0.0.1:{self._port}"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault proxy", daemon=True)

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        self._run(self._listen())
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._run(self._refuse())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._holder.close()

    def set(self, **faults: Any) -> None:
        """Replace the faults; without arguments the proxy only forwards."""
        self._run(self._become(Faults(**faults)))

    @property
    def counts(self) -> dict[str, int]:
        return dict(self._counts)

    def _run(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _become(self, faults: Faults) -> None:
        was_down, self._faults = self._faults.down, faults
        if faults.down and not was_down:
            await self._refuse()
        elif was_down and not faults.down:
            await self._listen()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", self._port, reuse_port=True, backlog=256)

    async def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._open):
            _reset(writer)
        handlers = list(self._handlers)
        for handler in handlers:
            handler.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)

    def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # The task is created here: if asyncio created it, a cancellation would be logged as an error.
        handler = self._loop.create_task(self._serve(reader, writer))
        self._handlers.add(handler)
        handler.add_done_callback(self._handlers.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection until either side ends it."""
        self._open.add(writer)
        try:
            # A client or a server that disconnects ends this connection only.
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._answer(reader, writer):
                    pass
                await asyncio.sleep(self._faults.slow_close_s)
        finally:
            self._open.discard(writer)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; says whether the connection lives on."""
        request = await _read_head(reader)
        body = await reader.readexactly(int(request.headers.get("content-length", 0)))
        self._counts["requests"] += 1
        faults = self._faults if self._faults.only in request.line.split(" ")[1] else CALM
        await asyncio.sleep(faults.latency_s + faults.jitter_s * self._random.uniform(-1, 1))
        if self._strikes("timeout", faults.timeout):
            await reader.read()  # until the client gives up
            return False
        if self._strikes("error", faults.error):
            writer.write(_error(faults.status, bare=request.line.startswith("HEAD")))
            await writer.drain()
            return True
        upstream, to_upstream = await asyncio.open_connection(*self._upstream)
        try:
            to_upstream.write(request.text("Connection: close") + body)
            return await self._respond(request, upstream, writer, faults)
        finally:
            to_upstream.close()

    async def _respond(
        self, request: Head, upstream: asyncio.StreamReader, writer: asyncio.StreamWriter, faults: Faults
    ) -> bool:
        response = await _read_head(upstream)
        if "content-length" not in response.headers:
            raise RuntimeError(f"the response of the server behind the proxy has no content-length: {response.line}")
        length = 0 if request.line.startswith("HEAD") else int(response.headers["content-length"])
        cut_at = reset_at = length
        if faults.limit_data is not None and faults.limit_data < length:
            cut_at = faults.limit_data if self._strikes("limit_data", faults.limit_share) else length
        reset = self._strikes("reset", faults.reset)
        if reset:
            reset_at = self._random.randrange(length + 1)
        writer.write(response.text())
        await self._pass_on(upstream, writer, min(cut_at, reset_at), faults)
        if reset:
            _reset(writer)
        return not reset and cut_at == length

    async def _pass_on(
        self, upstream: asyncio.StreamReader, writer: asyncio.StreamWriter, length: int, faults: Faults
    ) -> None:
        """Forward ``length`` bytes of a body."""
        while length:
            piece = await upstream.read(min(length, faults.slicer_bytes or PIECE))
            if not piece:
                raise ConnectionError("the server behind the proxy ended a response early")
            length -= len(piece)
            await self._wait_for_room(len(piece))
            self._counts["bytes"] += len(piece)  # before the client can have read them
            writer.write(piece)
            await writer.drain()
            if faults.slicer_bytes is not None:
                await asyncio.sleep(faults.slicer_delay_s)
        await writer.drain()

    async def _wait_for_room(self, n_bytes: int) -> None:
        """Wait until the line, shared by all connections, has carried all earlier bytes."""
        if self._faults.bandwidth is not None:
            now = time.monotonic()
            self._free_at = max(now, self._free_at) + n_bytes / self._faults.bandwidth
            await asyncio.sleep(self._free_at - now)

    def _strikes(self, name: str, share: float) -> bool:
        struck = self._random.random() < share
        self._counts[name] += struck
        return struck


@dataclass(frozen=True)
class Head:
    """The head of a request or a response."""

    line: str
    headers: dict[str, str]

    def text(self, *more: str) -> bytes:
        """Return the head as HTTP/1.1, without the header ``connection``; ``more`` are further header lines."""
        line = self.line.replace("HTTP/1.0", "HTTP/1.1")
        kept = (f"{name}: {value}" for name, value in self.headers.items() if name != "connection")
        return "\r\n".join([line, *kept, *more, "", ""]).encode("latin-1")


async def _read_head(reader: asyncio.StreamReader) -> Head:
    line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
    pairs = (line.split(":", 1) for line in lines)
    return Head(line, {name.lower(): value.strip() for name, value in pairs})


def _error(status: int, *, bare: bool) -> bytes:
    body = f"<?xml version='1.0'?><Error><Code>{CODES[status]}</Code><Message>asked for</Message></Error>".encode()
    head = Head(f"HTTP/1.1 {status} {CODES[status]}", {"content-type": "application/xml"})
    return head.text(f"content-length: {len(body)}") + (b"" if bare else body)


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection by RST; bytes that the peer has not read are lost."""
    connection = writer.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class ProxyProcess:
    """A :class:`FaultProxy` in a process of its own, which ends with the block and with this process."""

    def __init__(self, upstream: str, *, seed: int = 0) -> None:
        self._command = [sys.executable, "-m", "tests.support.fault_proxy", upstream, str(seed)]
        self._lock = threading.Lock()

    def __enter__(self) -> ProxyProcess:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.endpoint = self._receive()["endpoint"]
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)

    def set(self, **faults: Any) -> None:
        self._send({"set": faults})

    @property
    def counts(self) -> dict[str, int]:
        return self._send({})

    @property
    def pid(self) -> int:
        return self._process.pid

    def _send(self, order: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            return self._receive()

    def _receive(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the proxy's process has ended with {self._process.wait(10)}")
        return json.loads(line)


def main() -> None:
    """Serve until stdin ends. Each line of stdin is an order in JSON; the answer is a line with the counts."""
    upstream, seed = sys.argv[1:]
    with FaultProxy(upstream, seed=int(seed)) as proxy:
        print(json.dumps({"endpoint": proxy.endpoint}), flush=True)
        for line in sys.stdin:
            order = json.loads(line)
            if "set" in order:
                proxy.set(**order["set"])
            print(json.dumps(proxy.counts), flush=True)


if __name__ == "__main__":
    main()
