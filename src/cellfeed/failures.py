"""What an error of TileDB or of an object store means: whether it may pass, and what mends it if it may not. Pure."""

from __future__ import annotations

import re

_STATUS = re.compile(r"HTTP Response Code: (-?\d+)")
_PASSING = re.compile(
    r"curlCode|SlowDown|RequestTimeout|timed? ?out|temporarily|too many requests"
    r"|connection (was )?(reset|refused|closed|aborted)|service ?unavailable",
    re.IGNORECASE,
)
_REGION = re.compile(r"HTTP Response Code: 30[17].*'x-amz-bucket-region' = '([a-z0-9-]+)'", re.DOTALL)

_ADDRESS = re.compile(r"curlCode: [56]\b")
"""A proxy or a host that was not found: a mistake, unless the same process has reached the store before."""

_NO_MEMORY = r"bad_alloc|MemoryError|not enough memory|can(no|')t allocate memory|can't start new thread"

_ADVICE = {
    _NO_MEMORY: (
        "there is no memory for it: a limit of this process (ulimit -v, a cgroup, --mem of SLURM) or the machine has "
        "too little"
    ),
    r"construction from null": (
        "the working folder of this process does not exist any more, and TileDB asks for it when it starts: "
        "os.chdir(...) to a folder that exists"
    ),
    r"HTTP Response Code: 30[17]|PermanentRedirect|AuthorizationHeaderMalformed": (
        "the bucket is in another region: set vfs.s3.region (the Census is in us-west-2)"
    ),
    r"curlCode: 5\b": "the proxy is not found: check vfs.s3.proxy_host and vfs.s3.proxy_port",
    r"curlCode: 6\b": (
        "the host is not found: check vfs.s3.endpoint_override and vfs.s3.region, and that this machine has a network"
    ),
    r"curlCode: (35|51|58|60|77|82|83|91)\b": (
        "the certificate of the server or proxy is not accepted: set vfs.s3.ca_file or vfs.s3.ca_path"
    ),
    r"failed to sign|ClientSigningFailure|InvalidAccessKeyId|SignatureDoesNotMatch|MissingAuthenticationToken": (
        "credentials are missing or wrong: set vfs.s3.aws_access_key_id and vfs.s3.aws_secret_access_key, or "
        "vfs.s3.no_sign_request=true for a bucket that anybody may read, such as that of the Census"
    ),
    r"AccessDenied|HTTP Response Code: 403": (
        "the store refuses access: check the credentials, or set vfs.s3.no_sign_request=true for a bucket that anybody "
        "may read, such as that of the Census"
    ),
}
"""By what a message holds: the cause, and what to change, often a setting of the context."""


def advice_for(text: str) -> str | None:
    """Return the cause of an error that the user can mend, and how; ``None`` for other errors.

    Examples
    --------
    >>> advice_for("[HTTP Response Code: 301] [Headers: 'x-amz-bucket-region' = 'eu-west-1'] PermanentRedirect")
    'the bucket is in another region: set vfs.s3.region=eu-west-1'
    """
    if region := _REGION.search(text):
        return f"the bucket is in another region: set vfs.s3.region={region[1]}"
    for pattern, advice in _ADVICE.items():
        if re.search(pattern, text, re.IGNORECASE):
            region = _REGION.search(text)
            return (
                f"{advice.partition('=')[0].partition(' (')[0]}={region[1]}"
                if region and "region" in advice
                else advice
            )
    return None


def lacks_memory(error: BaseException) -> bool:
    """Whether an error of Python, PyTorch or TileDB says that there is no memory.

    Examples
    --------
    >>> lacks_memory(MemoryError()), lacks_memory(RuntimeError("std::bad_alloc")), lacks_memory(KeyError("memory"))
    (True, True, False)
    """
    return isinstance(error, MemoryError) or re.search(_NO_MEMORY, str(error), re.IGNORECASE) is not None


def is_transient(error: BaseException, *, was_reached: bool = False) -> bool:
    """Whether what failed may succeed when it is tried again, by what TileDB's message says.

    TileDB names the status of a response, which is that of success where its body was cut short, and -1 where there
    was none. What has no status and says nothing of the network, such as an array that does not exist, is final; so is
    what only another setting mends.

    Parameters
    ----------
    error
        What was raised.
    was_reached
        Whether this process has reached a store: then a host that is not found may be found again.

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
    if advice_for(text) is not None and not (was_reached and _ADDRESS.search(text)):
        return False
    return bool(statuses) or bool(_PASSING.search(text))
