"""A flooding client: `python -m scripts.benchmark.bystanders.flooder PORT ADDRESS NAME`.

Prints `begun`, and then how each of its connections ended: a close code, an HTTP status, or `cut`.
"""

import select
import socket
import sys
from typing import Final

from scripts.benchmark.bystanders.floods import BATCH, FLOODS, Flood
from scripts.benchmark.machine import HOST

BEGUN: Final = "begun"
_KEPT: Final = 256
"""How many of the last received bytes to keep: the close frame is in them."""
_PATIENCE_S: Final = 1.0


def main(port: int, address: str, name: str) -> None:
    """Flood until the process is killed."""
    flood = FLOODS[name]
    print(BEGUN, flush=True)
    while True:
        try:
            end = _flood_once(port, address, flood)
        except OSError:
            end = "cut"
        print(end, flush=True)


def _flood_once(port: int, address: str, flood: Flood) -> str:
    with socket.socket() as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        plain.bind((address, 0))
        plain.settimeout(_PATIENCE_S)
        plain.connect((HOST, port))
        if flood.comes_and_goes:
            return _come_and_go(plain, flood)
        if flood.first:
            plain.sendall(flood.first)
        return _flood(plain, flood.repeated * max(1, BATCH // len(flood.repeated)))


def _come_and_go(plain: socket.socket, flood: Flood) -> str:
    if not flood.first:
        return "left"
    plain.sendall(flood.first)
    try:
        return _status(plain.recv(4096))
    except TimeoutError:
        return "silent"


def _flood(plain: socket.socket, data: bytes) -> str:
    """Send and read, without waiting for answers, until the node ends the connection."""
    plain.setblocking(False)
    got, sent = b"", 0
    while True:
        select.select([plain], [plain], [])
        try:
            sent = (sent + plain.send(data[sent:])) % len(data)
        except BlockingIOError:
            pass
        except OSError:
            return _status(got)
        try:
            answer = plain.recv(1024 * 1024)
        except BlockingIOError:
            continue
        except OSError:
            return _status(got)
        if not answer:
            return _status(got)
        got = (got + answer)[:_KEPT] if len(got) < _KEPT and not got else got[:64] + answer[-_KEPT:]


def _status(got: bytes) -> str:
    at = got.rfind(b"\x88")
    if at >= 0 and len(got) >= at + 4 and 1000 <= int.from_bytes(got[at + 2 : at + 4]) < 5000:
        return str(int.from_bytes(got[at + 2 : at + 4]))
    return got[9:12].decode("ascii", "replace") if got.startswith(b"HTTP/") else "cut"


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
