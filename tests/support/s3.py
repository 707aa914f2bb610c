"""An object store for tests: moto's S3 server on the loopback, in a process of its own.

with s3_server() as s3:
    uri = s3.upload("hundred.soma", "bucket")
    context = soma.SOMATileDBContext(tiledb_config=s3.config())
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3

REGION = "us-east-1"  # buckets of this region need no location constraint
KEYS = {"aws_access_key_id": "test", "aws_secret_access_key": "test-secret"}
ROOT = Path(__file__).resolve().parents[2]


def object_settings(endpoint: str, *, signed: bool = False) -> dict[str, str]:
    """Return the TileDB settings for an endpoint: that of the server or of a proxy before it."""
    keys = {f"vfs.s3.{name}": value for name, value in KEYS.items()}
    return {
        "vfs.s3.endpoint_override": endpoint,
        "vfs.s3.scheme": "http",
        "vfs.s3.use_virtual_addressing": "false",
        "vfs.s3.region": REGION,
        **(keys if signed else {"vfs.s3.no_sign_request": "true"}),
    }


@dataclass(frozen=True)
class S3Server:
    """A running server; ``endpoint`` is its host and port."""

    endpoint: str
    pid: int

    def client(self) -> Any:
        """Return a client of boto3, to be closed."""
        return boto3.client("s3", endpoint_url=f"http://{self.endpoint}", region_name=REGION, **KEYS)

    def upload(self, folder: Path | str, bucket: str = "cells") -> str:
        """Upload a local store with public read access; return its URI."""
        folder = Path(folder)
        client = self.client()
        try:
            client.create_bucket(Bucket=bucket, ACL="public-read")
            for path in sorted(folder.rglob("*")):
                key = f"{folder.name}/{path.relative_to(folder).as_posix()}"
                if path.is_file():
                    client.upload_file(str(path), bucket, key, ExtraArgs={"ACL": "public-read"})
        finally:
            client.close()
        return f"s3://{bucket}/{folder.name}"

    def config(self, *, signed: bool = False) -> dict[str, str]:
        """Return the TileDB settings with which the server is read directly."""
        return object_settings(self.endpoint, signed=signed)


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Start a server that ends with the block, and with this process even if it is killed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.s3"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        endpoint = process.stdout.readline().strip()
        if not endpoint:
            raise RuntimeError(f"moto's server did not start: it ended with {process.wait(10)}")
        yield S3Server(endpoint, process.pid)
    finally:
        process.stdin.close()
        process.stdout.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def keep_whole_objects() -> None:
    """Make moto keep the bytes of an object: it copies all of them for each request of a range.

    Otherwise it sends 3 ranges per second of a file of 364 MB, however short they are.
    """
    from moto.s3.models import FakeKey

    plain = FakeKey.value

    def get(key: Any) -> bytes:
        if "kept" not in vars(key):
            key.kept = plain.fget(key)
        return key.kept

    def put(key: Any, value: bytes) -> None:
        vars(key).pop("kept", None)
        plain.fset(key, value)

    FakeKey.value = property(get, put)


def main() -> None:
    """Serve on a free port, which is printed, until stdin ends; it also ends when the parent is killed."""
    import logging

    from moto.server import ThreadedMotoServer

    keep_whole_objects()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    print(f"{host}:{port}", flush=True)
    sys.stdin.read()
    os._exit(0)  # no client waits for the requests in progress


if __name__ == "__main__":
    main()
