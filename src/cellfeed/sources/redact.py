"""Removes credentials in URIs and settings from text that is shown, saved or raised."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from urllib.parse import quote, unquote

from cellfeed._joinids import IntArray
from cellfeed.errors import CellfeedError, ReadError, RetryTimeout
from cellfeed.sources.failures import advice_for, readable

HIDDEN = "***"
"""Replaces a credential in text."""

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]*")
_SECRET_SETTING = re.compile(
    r"key|token|secret|password|username|credential|account|identity|role|external_id|session_name|header"
)
_HARMLESS = {"", "true", "false", "auto", "none", "http", "https"}
_MIN_LENGTH = 4  # shorter texts are not secrets, and are parts of many words


def public_uri(uri: object) -> str:
    """Return a URI without user name, password, query and fragment; a path is returned as it is.

    Examples
    --------
    >>> public_uri("https://user:password@host/cells?X-Amz-Signature=0a1b")
    'https://host/cells'
    >>> public_uri("/data/who@home")
    '/data/who@home'
    """
    text = str(uri)
    scheme, separator, rest = text.partition("://")
    if not separator or scheme == "file" or not scheme.isascii():
        return text
    rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    before, at, after = rest.rpartition("@")
    # A password may contain a slash. Without a colon, the text after a slash is a path, which may contain an @.
    is_user = bool(at) and (":" in before or "/" not in before)
    return f"{scheme}://{after if is_user else rest}"


def secrets_of(uri: object = "", config: Mapping[str, object] | None = None) -> frozenset[str]:
    """Return the secret texts in a URI and in TileDB's settings."""
    secrets = [str(value) for key, value in (config or {}).items() if _SECRET_SETTING.search(str(key).lower())]
    for address in (str(uri), *map(str, (config or {}).values())):
        shown = public_uri(address)
        if shown != address:
            hidden = address.partition("://")[2]
            query = re.split(r"[?#]", hidden, maxsplit=1)[1:]
            user = re.split(r"[?#]", hidden, maxsplit=1)[0].rpartition("@")[0]
            secrets += [part.partition("=")[2] or part for piece in query for part in re.split(r"[&?#]", piece)]
            secrets += [user, *user.split(":", 1), *re.split("[:/]", user)]  # a message may show parts of a password
    secrets += [form for secret in secrets for form in (unquote(secret), quote(secret, safe=""))]
    return frozenset(secret for secret in secrets if len(secret) >= _MIN_LENGTH and secret.lower() not in _HARMLESS)


def redacted(text: object, secrets: frozenset[str] = frozenset()) -> str:
    """Return text without credentials: those of the URIs in it, and known secrets.

    Examples
    --------
    >>> redacted("no such key: s3://name:password@bucket/cells (key SESAME)", frozenset({"SESAME"}))
    'no such key: s3://bucket/cells (key ***)'
    """
    shown = str(text)
    for secret in sorted(secrets, key=len, reverse=True):
        shown = shown.replace(secret, HIDDEN)
    return _URI.sub(lambda match: public_uri(match[0]), shown)


def public_cause(cause: BaseException, secrets: frozenset[str]) -> BaseException | None:
    """Return the cause of an error for ``raise ... from``; ``None`` if the cause, or a cause of it, has a secret."""
    error: BaseException | None = cause
    while error is not None:
        if any(text != redacted(text, secrets) for text in (str(error), repr(error))):
            return None
        error = error.__cause__ or error.__context__
    return cause


@contextlib.contextmanager
def reraise_as(
    error: type[CellfeedError], what: str, secrets: frozenset[str] = frozenset(), advice: str = ""
) -> Iterator[None]:
    """Raise errors of the body as an error of cellfeed, with the original error as cause and without credentials.

    ``what`` begins the message; ``advice`` ends it unless :func:`advice_for` knows better. Errors of cellfeed pass.
    """
    try:
        yield
    except CellfeedError:
        raise
    except RetryTimeout as cause:
        raise ReadError(f"{redacted(what, secrets)}: {cause}") from cause.__cause__
    except Exception as cause:
        message = readable(redacted(cause, secrets)).partition("\n\nAt:\n")[0]  # a C++ stack follows
        reason = message or type(cause).__name__
        known = advice_for(str(cause) or type(cause).__name__)
        advice = advice if known is None else f". {known[0].upper()}{known[1:]}"
        raise error(f"{redacted(what, secrets)}: {reason}{advice}") from public_cause(cause, secrets)


def failed_read(joinids: IntArray, place: object) -> str:
    """Return the message of a failed read of rows."""
    cells = f"soma_joinid {joinids[0]} to {joinids[-1]}" if len(joinids) else "nothing"
    return f"reading {cells} of {str(place)!r} failed"
