"""Meaning of the errors of TileDB and object stores: whether they are transient, and how to fix the others. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple

_STATUS = re.compile(r"HTTP Response Code: (-?\d+)")
_TRANSIENT = re.compile(
    r"curlCode|SlowDown|RequestTimeout|timed? ?out|temporarily|too many requests"
    r"|connection (was )?(reset|refused|closed|aborted)|service ?unavailable",
    re.IGNORECASE,
)
_REGION = re.compile(r"'x-amz-bucket-region' = '([a-z0-9-]+)'")
_NOISE = re.compile(r" ?\[(?:Headers|Request ID|Remote IP):[^\]]*\]")

_NO_MEMORY = r"bad_alloc|MemoryError|not enough memory|can(no|')t allocate memory|can't start new thread"
_OPEN_DATA = "vfs.s3.no_sign_request=true for a public bucket, such as that of the Census"
_ANY_REGION = "vfs.s3.region (the Census is in us-west-2)"
_KEYS = "set vfs.s3.aws_access_key_id and vfs.s3.aws_secret_access_key"

NEVER, ONCE_REACHED, ALWAYS = range(3)
"""When an error is transient: never; if the store was reached before with the same settings; always."""


class Cause(NamedTuple):
    """A cause of errors: pattern of the messages, when the errors are transient, and advice to the user."""

    pattern: str
    transient: int
    advice: str


_CAUSES = (
    Cause(
        _NO_MEMORY,
        NEVER,
        "there is not enough memory: the machine or a limit of this process (ulimit -v, a cgroup, --mem of SLURM) "
        "has too little",
    ),
    Cause(
        r"out of domain bounds|outside of the current domain",
        NEVER,
        "the store has no such soma_joinid: joinids belong to one store, or to one release of a Census",
    ),
    Cause(
        r"construction from null",
        NEVER,
        "the working folder of this process does not exist any more, and TileDB needs it to start: "
        "os.chdir(...) to a folder that exists",
    ),
    Cause(r"curlCode: 5\b", ONCE_REACHED, "the proxy is not found: check vfs.s3.proxy_host and vfs.s3.proxy_port"),
    Cause(
        r"curlCode: 6\b",
        ONCE_REACHED,
        "the host is not found: check vfs.s3.endpoint_override and vfs.s3.region, and that this machine has a network",
    ),
    Cause(
        r"curlCode: 35\b(?!.*(?:reset|SYSCALL|timed out))",  # a bad network interrupts handshakes too
        ONCE_REACHED,
        "an encrypted connection failed: check vfs.s3.endpoint_override and its port, and vfs.s3.scheme",
    ),
    Cause(
        r"curlCode: (51|58|60|77|82|83|91)\b",
        NEVER,
        "the certificate of the server or proxy is not accepted: set vfs.s3.ca_file or vfs.s3.ca_path",
    ),
    Cause(
        r"curlCode: (7|28)\b",
        ALWAYS,
        "if this machine reaches the network through a proxy, set vfs.s3.proxy_host and vfs.s3.proxy_port",
    ),
    Cause(
        r"HTTP Response Code: 30[178]|PermanentRedirect|AuthorizationHeaderMalformed",
        NEVER,
        f"the bucket is in another region: set {_ANY_REGION}",
    ),
    Cause(r"RequestTimeTooSkewed", NEVER, "the clock of this machine is wrong: set it"),
    Cause(r"NoSuchBucket", NEVER, "there is no such bucket: check its name in the URI"),
    Cause(
        r"ExpiredToken|TokenRefreshRequired|InvalidToken",
        NEVER,
        f"the credentials have expired: get new ones, or set {_OPEN_DATA}",
    ),
    Cause(
        r"failed to sign|ClientSigningFailure|InvalidAccessKeyId|SignatureDoesNotMatch|MissingAuthenticationToken",
        NEVER,
        f"credentials are missing or wrong: {_KEYS}, or {_OPEN_DATA}",
    ),
    Cause(
        r"AccessDenied|HTTP Response Code: 403",
        NEVER,
        f"the store refuses access: check the credentials, or set {_OPEN_DATA}",
    ),
)
"""Known causes; the first whose pattern matches applies."""


def _cause_of(text: str) -> Cause | None:
    return next((cause for cause in _CAUSES if re.search(cause.pattern, text, re.IGNORECASE)), None)


def advice_for(text: str) -> str | None:
    """Return the cause of an error that the user can fix, and how to fix it; ``None`` for other errors.

    Examples
    --------
    >>> advice_for("[HTTP Response Code: 301] [Headers: 'x-amz-bucket-region' = 'eu-west-1'] PermanentRedirect")
    'the bucket is in another region: set vfs.s3.region=eu-west-1'
    """
    cause, region = _cause_of(text), _REGION.search(text)
    if cause is None or region is None:
        return cause and cause.advice
    return cause.advice.replace(_ANY_REGION, f"vfs.s3.region={region[1]}")


def readable(text: str) -> str:
    """Return a message of TileDB without the headers and identifiers of the HTTP response.

    Examples
    --------
    >>> readable("S3: Failed [HTTP Response Code: 503] [Remote IP: 127.0.0.1] [Headers: 'date' = 'today'] : slow down")
    'S3: Failed [HTTP Response Code: 503] : slow down'
    """
    return _NOISE.sub("", text)


def lacks_memory(error: BaseException) -> bool:
    """Whether an error of Python, PyTorch or TileDB means that memory is exhausted.

    Examples
    --------
    >>> lacks_memory(MemoryError()), lacks_memory(RuntimeError("std::bad_alloc")), lacks_memory(KeyError("memory"))
    (True, True, False)
    """
    return isinstance(error, MemoryError) or re.search(_NO_MEMORY, str(error), re.IGNORECASE) is not None


def is_transient(error: BaseException, *, was_reached: bool = False) -> bool:
    """Whether an operation that raised an error may succeed if it is repeated, judged by the message of TileDB.

    The message contains the HTTP status of the response: a status of success if the body was cut short, and -1 without
    a response. An error without a status or a word of the network, such as a missing array, is final. So is an error
    that only another setting fixes.

    Parameters
    ----------
    error
        The error that was raised.
    was_reached
        Whether the store was reached before. If so, the settings are right, and a host that is not found is transient.

    Examples
    --------
    >>> is_transient(RuntimeError("[HTTP Response Code: 503] [Exception: SlowDown]"))
    True
    >>> is_transient(RuntimeError("[HTTP Response Code: 403] [Exception: AccessDenied]"))
    False
    """
    text = str(error)
    statuses = [int(status) for status in _STATUS.findall(text)]
    if any(400 <= status < 500 and status not in (408, 429) for status in statuses):
        return "RequestTimeout" in text and "RequestTimeTooSkewed" not in text
    cause = _cause_of(text)
    if cause is not None and (cause.transient == NEVER or (cause.transient == ONCE_REACHED and not was_reached)):
        return False
    return bool(statuses) or bool(_TRANSIENT.search(text))
