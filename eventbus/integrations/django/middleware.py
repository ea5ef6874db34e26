"""`to_others()` excludes the client connection that a request names."""

from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.http import HttpRequest, HttpResponseBase
from django.utils.decorators import sync_and_async_middleware

from eventbus.events import current
from eventbus.integrations.asgi import connection_of

__all__ = ["connection"]


@sync_and_async_middleware
def connection(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """The middleware: `eventbus.integrations.django.middleware.connection` in MIDDLEWARE."""
    if iscoroutinefunction(get_response):

        async def handle_async(request: HttpRequest) -> HttpResponseBase:
            with current.connection_of_request(connection_of(request.headers.get)):
                answer: Awaitable[HttpResponseBase] = get_response(request)
                return await answer

        return handle_async

    def handle(request: HttpRequest) -> HttpResponseBase:
        with current.connection_of_request(connection_of(request.headers.get)):
            response: HttpResponseBase = get_response(request)
            return response

    return handle
