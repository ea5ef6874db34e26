"""The development secret, created once per folder. Edges in production refuse it."""

import os
import secrets
from pathlib import Path
from typing import Final

from eventbus.cli.output import fail
from eventbus.server import LOCAL, make_local_folder

__all__ = ["DEV_SECRET", "dev_secret"]


DEV_SECRET: Final = Path(LOCAL) / "dev-secret"
_MIN_BYTES: Final = 32  # RFC 7518 §3.2
_MARK: Final = "development-only-"
"""The prefix of the secret, by which an edge in production recognizes a copy of it."""


def dev_secret() -> str:
    """Return the secret that `eventbus dev` checks tokens with if JWT_SECRET is not set.

    The first call creates it in a file that only its owner can read. Tokens and links therefore
    remain valid after a restart. Exits if the file cannot be used.
    """
    try:
        make_local_folder(DEV_SECRET.parent)
        try:
            file = os.open(DEV_SECRET, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            secret = DEV_SECRET.read_text(encoding="utf-8").strip()
        else:
            secret = f"{_MARK}{secrets.token_urlsafe(32)}"
            with os.fdopen(file, "w", encoding="utf-8") as opened:
                opened.write(f"{secret}\n")
    except (OSError, UnicodeDecodeError) as exc:
        fail(f"{DEV_SECRET}: cannot store the development secret there: {exc}")
    if len(secret.encode()) < _MIN_BYTES:
        fail(f"{DEV_SECRET} has fewer than {_MIN_BYTES} bytes: remove it to get a new one")
    return secret
