"""The servers that NATS_URL names, and what a client logs in to each with."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from eventbus.drivers.nats_errors import DRIVER
from eventbus.errors import ConnectionFailed
from eventbus.urls import BrokerAddress, parse_broker_address

__all__ = ["Servers"]

_SCHEMES: Final = ("nats", "tls", "ws", "wss")
_PORT: Final = 4222
_OVER_HTTP: Final = ("ws", "wss")
"""Their default ports are HTTP's, and a path and query mean something."""


class Servers(NamedTuple):
    """The addresses of one cluster. Its repr has no secret."""

    addresses: tuple[BrokerAddress, ...]

    @classmethod
    def of(cls, nats_url: str) -> "Servers":
        """Read NATS_URL, addresses separated by commas.

        Raises ConnectionFailed, which does not quote it.
        """
        addresses: list[BrokerAddress] = []
        for entry in filter(None, map(str.strip, nats_url.split(","))):
            if addresses and "://" not in entry and "@" in entry:
                # A part of the address before it, whose password has a comma?
                raise _wrong(
                    "after a comma, an address with credentials needs its scheme; a comma in a "
                    "password is written %2C"
                )
            try:
                addresses.append(_address(entry))
            except ValueError as exc:
                raise _wrong(str(exc)) from None
        return cls(tuple(addresses))

    @property
    def schemes(self) -> frozenset[str]:
        """How they are spoken to."""
        return frozenset(address.scheme for address in self.addresses)

    @property
    def urls(self) -> list[str]:
        """The addresses without credentials."""
        return [address.url for address in self.addresses]

    @property
    def shown(self) -> str:
        """The addresses for logs and errors."""
        return ", ".join(address.shown for address in self.addresses)

    def credentials(self, netloc: str = "") -> Mapping[str, Any]:
        """User, password and token for the server at `host:port`, as nats-py's options.

        A server that is not named, or without any of its own, gets those of the first that has
        some: servers of a cluster tell of others, and share their users.
        """
        own = [a for a in self.addresses if a.url.partition("://")[2].partition("/")[0] == netloc]
        for address in (*own, *self.addresses):
            if address.user is not None:
                if address.password is None:
                    return {"user": None, "password": None, "token": address.user}
                return {"user": address.user, "password": address.password, "token": None}
        return {"user": None, "password": None, "token": None}


def _address(text: str) -> BrokerAddress:
    address = parse_broker_address(text, _SCHEMES, "nats")
    if address.scheme in _OVER_HTTP:
        return address
    if address.path not in ("", "/") or address.query:
        raise ValueError("it has a path or a query")
    [(host, port)] = address.hosts
    return address._replace(hosts=((host, port or _PORT),), path="")


def _wrong(problem: str) -> ConnectionFailed:
    return ConnectionFailed(
        f"cannot connect: NATS_URL=***: {problem}; allowed: nats://, tls://, ws:// or wss:// "
        "addresses, separated by commas, each host:port with user:password@ or token@ before it "
        "where needed",
        driver=DRIVER,
    )
