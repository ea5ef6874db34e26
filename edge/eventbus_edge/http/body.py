"""Reads the body of a request, with limits on size, time and type."""

import asyncio
from http import HTTPStatus
from typing import Final

from aiohttp import web

from eventbus_edge.problem import Problem

__all__ = ["JSON", "read_json_text"]


JSON: Final = "application/json"


async def read_json_text(request: web.Request, within_s: float) -> str:
    """The text of a JSON body, not parsed yet. Raises Problem.

    Its size is limited by the application's `client_max_size`; aiohttp answers 413 beyond it.
    """
    if request.content_type != JSON:
        # A form of any page could send another type, without a CORS preflight.
        raise _unsupported(f"the body must be of type {JSON}")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        message = "the body must not be compressed: remove Content-Encoding"
        raise _unsupported(message, {"Accept-Encoding": "identity"})  # RFC 9110 §12.5.3
    try:
        async with asyncio.timeout(within_s):
            return (await request.read()).decode()
    except TimeoutError:
        message = f"the body was not received within {within_s:g} s"
        raise Problem("bad_request", message, status=HTTPStatus.REQUEST_TIMEOUT) from None
    except (web.RequestPayloadError, ConnectionError):
        # The chunks are malformed, or the client has left and gets no answer.
        raise Problem("bad_request", "the body is incomplete") from None
    except UnicodeDecodeError as exc:
        raise Problem("bad_request", f"the body is not valid: {exc}") from None


def _unsupported(message: str, headers: dict[str, str] | None = None) -> Problem:
    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    return Problem("bad_request", message, status=status, headers=headers)
