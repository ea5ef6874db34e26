"""The body of a request, read with a bound on its size, its time and its form."""

import asyncio
from http import HTTPStatus
from typing import Final

from aiohttp import web

from eventbus_edge.problem import Problem

__all__ = ["JSON", "read_json_text"]


JSON: Final = "application/json"


async def read_json_text(request: web.Request, within_s: float) -> str:
    """The text of a JSON body, which is not parsed yet. Raises Problem.

    How long it may be is the application's `client_max_size`; more is a 413 of aiohttp's own.
    """
    if request.content_type != JSON:
        # Another type could come from a form of any page, without the browser asking first.
        raise _unsupported(f"the body must be of type {JSON}")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        message = "the body must not be compressed: leave Content-Encoding out"
        raise _unsupported(message, {"Accept-Encoding": "identity"})  # RFC 9110 §12.5.3
    try:
        async with asyncio.timeout(within_s):
            return (await request.read()).decode()
    except TimeoutError:
        message = f"the body did not come within {within_s:g} s"
        raise Problem("bad_request", message, status=HTTPStatus.REQUEST_TIMEOUT) from None
    except (web.RequestPayloadError, ConnectionError):
        # Its chunks cannot be read, or the client has left: then the answer reaches nobody.
        raise Problem("bad_request", "the body ends before it is whole") from None
    except UnicodeDecodeError as exc:
        raise Problem("bad_request", f"the body is not valid: {exc}") from None


def _unsupported(message: str, headers: dict[str, str] | None = None) -> Problem:
    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    return Problem("bad_request", message, status=status, headers=headers)
