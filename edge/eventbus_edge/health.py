"""`python -m eventbus_edge.health`: exits with 0 if the node on this machine is ready, else with 1.

For health checks of containers. It needs the node's environment, for its port and TLS settings.
"""

import ssl
import sys
import urllib.request
from collections.abc import Mapping
from typing import Final

from eventbus.errors import ConfigError
from eventbus.user_code import printable
from eventbus_edge.config import EdgeSettings

__all__ = ["main"]


_TIMEOUT_S: Final = 3.0
_LOCAL: Final[Mapping[str, str]] = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}


def main() -> int:
    """Request /readyz once, without a proxy, and print any fault; returns the exit code."""
    try:
        settings = EdgeSettings.from_env()
        host = _LOCAL.get(settings.host, settings.host)
        scheme = "https" if settings.tls_cert else "http"
        url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{settings.port}/readyz"
        # The certificate is not verified: its name is not this machine's, and the request is not
        # secret.
        tls = ssl.create_default_context()
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls)
        )
        with opener.open(url, timeout=_TIMEOUT_S) as response:
            body = response.read(1000).decode(errors="replace")
            if '"degraded"' in body:
                print(printable(body), file=sys.stderr)  # noqa: T201
            return 0
    except urllib.error.HTTPError as exc:
        fault = f"{exc.code}: {exc.read(1000).decode(errors='replace')}"
    except (ConfigError, OSError) as exc:
        fault = str(exc)
    print(f"not ready: {printable(fault)}", file=sys.stderr)  # noqa: T201
    return 1


if __name__ == "__main__":
    sys.exit(main())
