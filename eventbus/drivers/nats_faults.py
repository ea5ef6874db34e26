"""What goes wrong with a connection to NATS: kept, told in the log, and put into words."""

import asyncio
import logging
import ssl
from typing import Final

from nats import errors as nats_errors

from eventbus.drivers.nats_creds import CredentialsError
from eventbus.drivers.nats_login import Login

__all__ = ["Faults", "refused_subject"]

_log = logging.getLogger(__name__)

_TELL_AGAIN_S: Final = 10.0
_MAX_TOLD: Final = 16
_REFUSALS: Final = (
    nats_errors.AuthorizationError,
    nats_errors.SecureConnRequiredError,
    CredentialsError,
    ssl.SSLError,
)
"""What does not pass by waiting."""
_REFUSED_WORDS: Final = (
    "authorization violation",
    "authentication expired",  # "user …" or "account …", of those who are connected
    "authentication revoked",
)
_ENDS: Final = (ConnectionResetError, BrokenPipeError, nats_errors.UnexpectedEOF)
"""What is left to hear of a connection when the server has refused it, and closed."""


class Faults:
    """The faults of one connection and of those that take its place."""

    def __init__(self, address: str, login: Login) -> None:
        """`address` is for the log, without secrets."""
        self.count = 0
        """How many errors the client has reported."""
        self.refusals = 0
        """How often a login was refused, or ended."""
        self.refused = asyncio.Event()
        """Set when the server will not have us."""
        self.last: BaseException | None = None
        self._address = address
        self._login = login
        self._told: dict[str, tuple[float, int]] = {}

    def clear(self) -> None:
        """Forget what was: another attempt begins, or there is a connection."""
        self.last = None
        self.refused.clear()

    def note(self, exc: BaseException) -> None:
        """Take an error of the client's, and log it; one that goes on is told now and then."""
        self.count += 1
        if self.refused.is_set() and isinstance(exc, _ENDS):
            return
        self.last = exc
        if self._is_refusal(exc):
            self.refusals += 1
            self.refused.set()
            self.tell(logging.ERROR, self.why)
        else:
            self.tell(logging.WARNING, self.why)

    def tell(self, level: int, what: str) -> None:
        """Log it; after that, what is the same is told again each ten seconds at the most."""
        now = asyncio.get_running_loop().time()
        at, times = self._told.pop(what, (-_TELL_AGAIN_S, 0))
        if now - at < _TELL_AGAIN_S:
            self._told[what] = (at, times + 1)
            return
        again = f" ({times} times more)" if times else ""
        _log.log(level, "NATS at %s: %s%s", self._address, what, again)
        self._told[what] = (now, 0)
        while len(self._told) > _MAX_TOLD:
            del self._told[next(iter(self._told))]

    @property
    def why(self) -> str:
        """The last fault in words, saying which setting to look at."""
        exc = self.last
        if exc is None:
            return "no answer"
        if isinstance(exc, CredentialsError):
            return str(exc)
        if isinstance(exc, nats_errors.SecureConnRequiredError):
            return (
                "the server speaks no TLS, which NATS_URL (tls://), NATS_CA or NATS_CERT asks for; "
                "nothing was sent to it"
            )
        if isinstance(exc, ssl.SSLCertVerificationError):
            return f"the server's certificate is not trusted (see NATS_CA): {exc.verify_message}"
        if isinstance(exc, ssl.SSLError):
            return f"no TLS with the server (does it want another NATS_CERT?): {exc}"
        if self._is_refusal(exc):
            return self._login.refusal()
        return str(exc) or type(exc).__name__

    @staticmethod
    def _is_refusal(exc: BaseException) -> bool:
        text = str(exc).lower()
        return isinstance(exc, _REFUSALS) or any(words in text for words in _REFUSED_WORDS)


def refused_subject(exc: BaseException) -> tuple[str, str]:
    """Of a permissions violation: `publish` or `subscription`, and the subject in lower case.

    Two empty texts for other errors.
    """
    text = str(exc).lower()
    kind, _, rest = text.partition("permissions violation for ")[2].partition(" to ")
    return kind, rest.partition('"')[2].partition('"')[0]
