"""HTTP errors as problem JSON (RFC 9457), with a `code` for programs."""

import math
from collections.abc import Mapping
from http.client import responses
from typing import Final, Self

import msgspec

__all__ = [
    "PROBLEM_JSON",
    "STATUS",
    "Problem",
    "ProblemDetails",
    "bad_token",
    "internal_error",
    "retry_after",
]


PROBLEM_JSON: Final = "application/problem+json"

_KEYS_RETRY_S: Final = 5.0

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
    # Only over HTTP.
    "certificate_required": 403,
    "not_found": 404,
    "websocket_disabled": 404,
    "method_not_allowed": 405,
    "precondition_failed": 412,
    "range_not_satisfiable": 416,
    "upgrade_required": 426,
    "invalid_version": 400,
    "unsupported_version": 400,
    "internal": 500,
}
"""The default status of each code."""


class ProblemDetails(msgspec.Struct, frozen=True, kw_only=True):
    """The body. This `type` means that `title` is the phrase of the status (RFC 9457 §4.2.1)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str


class Problem(Exception):
    """Ends a request; the response has `body()`, `status` and `headers`."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`status` defaults to that of `code`. A 401 always has a challenge.

        Raises KeyError for an unknown code without `status`.
        """
        # A name from a request may not be valid Unicode; it must not break the error about it.
        text = detail.encode("utf-8", "backslashreplace").decode()
        super().__init__(text)
        self.code = code
        self.detail = text
        self.status = STATUS[code] if status is None else status
        self.headers = dict(headers or {})
        if self.status == 401:  # required by RFC 9110 §15.5.2
            self.headers.setdefault("WWW-Authenticate", "Bearer")

    def forget_origin(self) -> Self:
        """Drop the traceback, and the exceptions that it comes from.

        They refer to the frames that they passed. A frame that keeps the problem in a variable is
        then part of a cycle, with the request and its socket, until garbage is collected.
        """
        self.__traceback__ = self.__cause__ = self.__context__ = None
        return self

    def details(self) -> ProblemDetails:
        """The contents of the body."""
        return ProblemDetails(
            title=responses.get(self.status, "Error"),
            status=self.status,
            detail=self.detail,
            code=self.code,
        )

    def body(self) -> bytes:
        """The body: JSON of the media type PROBLEM_JSON."""
        return msgspec.json.encode(self.details())


def internal_error() -> Problem:
    """A 500 for a fault of the node itself, which is logged."""
    return Problem("internal", "an internal error: see the log of the node")


def bad_token(code: str, detail: str) -> Problem:
    """A 401 for a token that is not accepted (RFC 6750 §3.1).

    A 503 for the code `unavailable`: the token cannot be checked at present.
    """
    if code == "unavailable":
        return Problem(code, detail, headers=retry_after(_KEYS_RETRY_S))
    return Problem(code, detail, headers={"WWW-Authenticate": 'Bearer error="invalid_token"'})


def retry_after(seconds: float) -> dict[str, str]:
    """The Retry-After header, in whole seconds, at least one (RFC 9110 §10.2.3)."""
    return {"Retry-After": str(max(1, math.ceil(seconds)))}
