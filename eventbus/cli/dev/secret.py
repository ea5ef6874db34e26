"""The secret of development: made once for a folder, and of no use anywhere else."""

import os
import secrets
from pathlib import Path
from typing import Final

from eventbus.cli.output import fail

__all__ = ["DEV_SECRET", "dev_secret"]


DEV_SECRET: Final = Path(".eventbus") / "dev-secret"
_MIN_BYTES: Final = 32  # RFC 7518 §3.2
_MARK: Final = "development-only-"
"""How the secret begins, so that an edge in production knows it wherever it was copied to."""


def dev_secret() -> str:
    """The secret that `eventbus dev` checks tokens with where JWT_SECRET is not set.

    It is made when it is asked for first, for its owner's eyes only, so that tokens and links
    outlive a restart. Ends the command when the file cannot be used.
    """
    try:
        DEV_SECRET.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(DEV_SECRET, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            secret = DEV_SECRET.read_text(encoding="utf-8").strip()
        else:
            secret = f"{_MARK}{secrets.token_urlsafe(32)}"
            with os.fdopen(file, "w", encoding="utf-8") as opened:
                opened.write(f"{secret}\n")
    except (OSError, UnicodeDecodeError) as exc:
        fail(f"{DEV_SECRET}: the secret of development cannot be kept there: {exc}")
    if len(secret.encode()) < _MIN_BYTES:
        fail(f"{DEV_SECRET} has fewer than {_MIN_BYTES} bytes: remove it, and a new one is made")
    return secret
