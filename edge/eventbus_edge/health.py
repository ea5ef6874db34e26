"""`python -m eventbus_edge.health`: exits with 0 if this machine's node is ready, else with 1.

For health checks of containers, with the node's own environment: they follow its port and its TLS.
"""

import ssl
import sys
import urllib.request
from collections.abc import Mapping
from typing import Final

from eventbus.errors import ConfigError
from eventbus_edge.config import EdgeSettings

__all__ = ["main"]


_TIMEOUT_S: Final = 3.0
_LOCAL: Final[Mapping[str, str]] = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}


def main() -> int:
    """Ask /readyz once, without a proxy, and print what is wrong; the exit code."""
    try:
        settings = EdgeSettings.from_env()
        host = _LOCAL.get(settings.host, settings.host)
        scheme = "https" if settings.tls_cert else "http"
        url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{settings.port}/readyz"
        # The node's own port: nothing is told to it that a stranger might not hear, and the name in
        # its certificate is not that of this machine.
        tls = ssl.create_default_context()
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls)
        )
        with opener.open(url, timeout=_TIMEOUT_S) as response:
            body = response.read(1000).decode(errors="replace")
            if '"degraded"' in body:
                print(body, file=sys.stderr)  # noqa: T201
            return 0
    except urllib.error.HTTPError as exc:
        fault = f"{exc.code}: {exc.read(1000).decode(errors='replace')}"
    except (ConfigError, OSError) as exc:
        fault = str(exc)
    print(f"not ready: {fault}", file=sys.stderr)  # noqa: T201
    return 1


if __name__ == "__main__":
    sys.exit(main())
