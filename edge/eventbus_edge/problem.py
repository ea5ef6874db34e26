"""HTTP errors as problem JSON (RFC 9457), with a `code` for programs."""

import math
from collections.abc import Mapping
from http.client import responses
from typing import Final

import msgspec

__all__ = ["PROBLEM_JSON", "STATUS", "Problem", "ProblemDetails", "bad_token", "retry_after"]


PROBLEM_JSON: Final = "application/problem+json"

_KEYS_AGAIN_S: Final = 5.0

STATUS: Final[Mapping[str, int]] = {
    # The codes of wire-protocol.md, "Errors".
    "bad_request": 400,
    "unknown_action": 400,
    "invalid_channel": 400,
    "limit_exceeded": 400,
    "unauthorized": 401,
    "token_expired": 401,
    "forbidden": 403,
    "not_subscribed": 409,
    "payload_too_large": 413,
    "rate_limited": 429,
    "unavailable": 503,
    # What only HTTP has.
    "certificate_required": 403,
    "not_found": 404,
    "internal": 500,
}
"""The status of each code, where nothing else is said."""


class ProblemDetails(msgspec.Struct, frozen=True, kw_only=True):
    """The body. `type` says that `title` is the status's own phrase (RFC 9457 §4.2.1)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str


class Problem(Exception):
    """Raised where a request ends; answered as `body()` with `status` and `headers`."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`status` is that of `code` when not given. A 401 always has its challenge.

        Raises KeyError for a code without a status, when none is given.
        """
        # A name from a request may hold what is no Unicode text; it must not break its own error.
        text = detail.encode("utf-8", "backslashreplace").decode()
        super().__init__(text)
        self.code = code
        self.detail = text
        self.status = STATUS[code] if status is None else status
        self.headers = dict(headers or {})
        if self.status == 401:  # RFC 9110 §15.5.2 demands it
            self.headers.setdefault("WWW-Authenticate", "Bearer")

    def details(self) -> ProblemDetails:
        """What the body says."""
        return ProblemDetails(
            title=responses.get(self.status, "Error"),
            status=self.status,
            detail=self.detail,
            code=self.code,
        )

    def body(self) -> bytes:
        """The problem as JSON, of the media type PROBLEM_JSON."""
        return msgspec.json.encode(self.details())


def bad_token(code: str, detail: str) -> Problem:
    """A 401 for a token that was given and is not accepted (RFC 6750 §3.1).

    A 503 when it is `unavailable` what the token would be checked with.
    """
    if code == "unavailable":
        return Problem(code, detail, headers=retry_after(_KEYS_AGAIN_S))
    return Problem(code, detail, headers={"WWW-Authenticate": 'Bearer error="invalid_token"'})


def retry_after(seconds: float) -> dict[str, str]:
    """The header that says when to come again: whole seconds, at least one (RFC 9110 §10.2.3)."""
    return {"Retry-After": str(max(1, math.ceil(seconds)))}
