"""What must not be shown: credentials in URIs and settings, taken out of text before anybody reads it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from urllib.parse import quote, unquote

from cellfeed._joinids import IntArray
from cellfeed.errors import CellfeedError, ReadError, RetryTimeout
from cellfeed.sources.failures import advice_for, readable

HIDDEN = "***"
"""Stands for what was taken out."""

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]*")
_SECRET_SETTING = re.compile(
    r"key|token|secret|password|username|credential|account|identity|role|external_id|session_name|header"
)
_HARMLESS = {"", "true", "false", "auto", "none", "http", "https"}
_MIN_LENGTH = 4  # shorter ones are no secrets, and would be found in half of all words


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
    # A password may hold a slash; without a colon, what stands behind one is a path and may hold an @.
    is_user = bool(at) and (":" in before or "/" not in before)
    return f"{scheme}://{after if is_user else rest}"


def secrets_of(uri: object = "", config: Mapping[str, object] | None = None) -> frozenset[str]:
    """Return the texts that a URI or TileDB's settings make known to us and nobody else shall read."""
    found = [str(value) for key, value in (config or {}).items() if _SECRET_SETTING.search(str(key).lower())]
    for address in (str(uri), *map(str, (config or {}).values())):
        shown = public_uri(address)
        if shown != address:
            hidden = address.partition("://")[2]
            query = re.split(r"[?#]", hidden, maxsplit=1)[1:]
            user = re.split(r"[?#]", hidden, maxsplit=1)[0].rpartition("@")[0]
            found += [part.partition("=")[2] or part for piece in query for part in re.split(r"[&?#]", piece)]
            found += [user, *user.split(":", 1)]
    found += [form for one in found for form in (unquote(one), quote(one, safe=""))]
    return frozenset(one for one in found if len(one) >= _MIN_LENGTH and one.lower() not in _HARMLESS)


def redacted(text: object, secrets: frozenset[str] = frozenset()) -> str:
    """Return text that others wrote, without credentials: those of URIs in it, and secrets that are known.

    Examples
    --------
    >>> redacted("no such key: s3://name:password@bucket/cells (key SESAME)", frozenset({"SESAME"}))
    'no such key: s3://bucket/cells (key ***)'
    """
    shown = str(text)
    for secret in sorted(secrets, key=len, reverse=True):
        shown = shown.replace(secret, HIDDEN)
    return _URI.sub(lambda found: public_uri(found[0]), shown)


def public_cause(cause: BaseException, secrets: frozenset[str]) -> BaseException | None:
    """Return the cause of an error for ``raise ... from``; ``None`` if it or what caused it tells a secret."""
    one: BaseException | None = cause
    while one is not None:
        if any(text != redacted(text, secrets) for text in (str(one), repr(one))):
            return None
        one = one.__cause__ or one.__context__
    return cause


@contextlib.contextmanager
def reraise_as(
    error: type[CellfeedError], what: str, secrets: frozenset[str] = frozenset(), advice: str = ""
) -> Iterator[None]:
    """Raise what goes wrong in the body as an error of ours, with its cause and without credentials."""
    try:
        yield
    except CellfeedError:
        raise
    except RetryTimeout as cause:
        raise ReadError(f"{redacted(what, secrets)}: {cause}") from cause.__cause__
    except Exception as cause:
        said = readable(redacted(cause, secrets)).partition("\n\nAt:\n")[0]  # behind it: a stack
        reason = said or type(cause).__name__
        setting = advice_for(str(cause) or type(cause).__name__)
        advice = advice if setting is None else f". {setting[0].upper()}{setting[1:]}"
        raise error(f"{redacted(what, secrets)}: {reason}{advice}") from public_cause(cause, secrets)


def failed_read(joinids: IntArray, place: object) -> str:
    """Say in a message that a read of rows failed."""
    cells = f"soma_joinid {joinids[0]} to {joinids[-1]}" if len(joinids) else "nothing"
    return f"reading {cells} of {str(place)!r} failed"
