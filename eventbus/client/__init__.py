"""A client of an edge, for services and tests: the behaviour of the browser's, over aiohttp.

    async with connect("wss://events.example.com/ws", token=fetch_token) as bus:
        orders = await bus.subscribe("orders.42", history=10)
        async for message in orders:
            print(message.event, message.data)

A lost connection is made again as its close code allows; each channel then goes on from the last
message that it received, no message is handed on twice, and what could not be had again is told.
See docs/python-client.md.
"""

import ssl

from eventbus.client.client import EdgeClient
from eventbus.client.frames import ClientMessage, HistoryPage, Member
from eventbus.client.options import ClientOptions, ClientState, StateChange
from eventbus.client.subscription import ChannelHandlers, Subscription
from eventbus.client.tokens import Token

__all__ = [
    "ChannelHandlers",
    "ClientMessage",
    "ClientOptions",
    "ClientState",
    "EdgeClient",
    "HistoryPage",
    "Member",
    "StateChange",
    "Subscription",
    "Token",
    "connect",
]


def connect(
    url: str,
    *,
    token: Token = None,
    options: ClientOptions | None = None,
    tls: ssl.SSLContext | None = None,
) -> EdgeClient:
    """A client of the edge at `url`, for `async with`.

    `url` is `ws://`, `wss://`, `http://` or `https://`; without a path, `/ws` is meant. `token` is
    a JWT, or an async function that gives one: it is asked again when a token expires or is
    refused. `tls` replaces the system's trust. Raises ValueError and TypeError for what is neither;
    entering raises what `EdgeClient.open` does.
    """
    return EdgeClient(url, token=token, options=options, tls=tls)
