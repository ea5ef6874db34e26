"""A client of an edge, for services and tests: the behavior of the browser's, over aiohttp.

    async with connect("wss://events.example.com/ws", token=fetch_token) as bus:
        orders = await bus.subscribe("orders.42", history=10)
        async for message in orders:
            print(message.event, message.data)

The client reconnects after a lost connection, as the close code allows. Each channel then resumes
after the last message that it received, no message is delivered twice, and gaps are reported.
See docs/python-client.md.
"""

import ssl

from eventbus.client.client import EdgeClient
from eventbus.client.frames import ClientMessage, HistoryPage, Member
from eventbus.client.options import ClientOptions, ClientState, StateChange
from eventbus.client.sockets import Sockets
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
    "Sockets",
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

    `url` starts with `ws://`, `wss://`, `http://` or `https://`; the default path is `/ws`. `token`
    is a JWT, or an async function that returns one and is called again when the token expires or is
    refused. `tls` replaces the system's trusted certificates. Raises ValueError for a bad `url` and
    TypeError for arguments of wrong types; entering raises what `EdgeClient.open` does.
    """
    return EdgeClient(url, token=token, options=options, tls=tls)
