"""Reads the body of a request, with limits on size, time and type."""

import asyncio
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qsl

from aiohttp import web

from eventbus.messages import json_decoder
from eventbus_edge.problem import Problem

__all__ = ["JSON", "body_too_large", "read_body", "read_form_or_json", "read_json_text"]


JSON: Final = "application/json"
_FORM: Final = "application/x-www-form-urlencoded"
_MAX_FIELDS: Final = 100
_MOST_FORM_BYTES: Final = 64 * 1024
"""Of a form, or its fields as JSON: clients without the API's key may send it."""
_decode_fields: Final = json_decoder(dict[str, Any])


async def read_json_text(
    request: web.Request, within_s: float, most_bytes: int | None = None
) -> str:
    """The text of a JSON body, not parsed yet. Raises Problem.

    Its size is limited by the application's `client_max_size`, and by `most_bytes`, if given.
    """
    if request.content_type != JSON:
        # A form of any page could send another type, without a CORS preflight.
        raise _unsupported(f"the body must be of type {JSON}")
    return await _read_text(request, within_s, most_bytes)


async def read_form_or_json(request: web.Request, within_s: float) -> dict[str, Any]:
    """The fields of a body: a form, or a JSON object. Raises Problem.

    A form of any page may send it with the cookies of its user, without a CORS preflight.
    """
    if request.content_type not in {JSON, _FORM}:
        raise _unsupported(f"the body must be of type {_FORM} or {JSON}")
    text = await _read_text(request, within_s, _MOST_FORM_BYTES)
    try:
        if request.content_type == JSON:
            return _decode_fields(text)
        return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=_MAX_FIELDS))
    except ValueError as exc:  # msgspec's are ValueErrors
        raise Problem("bad_request", f"the body is not valid: {exc}") from None


async def _read_text(request: web.Request, within_s: float, most_bytes: int | None) -> str:
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        message = "the body must not be compressed: remove Content-Encoding"
        raise _unsupported(message, {"Accept-Encoding": "identity"})  # RFC 9110 §12.5.3
    body = await read_body(request, within_s)
    if most_bytes is not None and len(body) > most_bytes:
        raise body_too_large(most_bytes)
    try:
        return body.decode()
    except UnicodeDecodeError as exc:
        raise Problem("bad_request", f"the body is not valid: {exc}") from None


async def read_body(request: web.Request, within_s: float) -> bytes:
    """The body, of any type. Raises Problem."""
    try:
        async with asyncio.timeout(within_s):
            return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise body_too_large(request.client_max_size) from None
    except TimeoutError:
        message = f"the body was not received within {within_s:g} s"
        raise Problem("bad_request", message, status=HTTPStatus.REQUEST_TIMEOUT) from None
    except (web.RequestPayloadError, ConnectionError):
        # The chunks are malformed, or the client has left and gets no answer.
        raise Problem("bad_request", "the body is incomplete") from None


def body_too_large(most_bytes: int) -> Problem:
    """The refusal of a body with more than `most_bytes`."""
    return Problem("payload_too_large", f"the body must have at most {most_bytes} bytes")


def _unsupported(message: str, headers: dict[str, str] | None = None) -> Problem:
    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    return Problem("bad_request", message, status=status, headers=headers)
