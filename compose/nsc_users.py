#!/usr/bin/env python3
"""Prints the nsc commands that create the users of nats/permissions.conf in your account.

    python compose/nsc_users.py --account EVENTBUS --namespace eb

For NATS in operator mode, where users are JWTs instead of entries in the server's configuration.
The subjects are read from permissions.conf, which is their only definition.
"""

import argparse
import re
import shlex
from pathlib import Path
from typing import Any, Final

PERMISSIONS: Final = Path(__file__).parent / "nats" / "permissions.conf"
_TOKEN: Final = re.compile(r'\s+|#[^\n]*|"(?P<text>[^"\n]*)"|(?P<word>\w+)|(?P<mark>[{}\[\]:,])')


def read_permissions(text: str, namespace: str = "eb") -> dict[str, dict[str, Any]]:
    """Return the permissions of each kind of user, by its name in lower case, for a namespace.

    Parses the subset of nats-server's configuration that permissions.conf uses: maps, lists, quoted
    strings and words. Raises ValueError for anything else.
    """
    tokens = _tokens(text)
    try:
        permissions, end = _map(tokens, 0)
    except (IndexError, ValueError) as exc:
        raise ValueError("permissions.conf ends inside a map or a list") from exc
    if end != len(tokens):
        raise ValueError("permissions.conf has unbalanced brackets")
    return {role.lower(): _moved(rights, namespace) for role, rights in permissions.items()}


def commands(permissions: dict[str, dict[str, Any]], account: str) -> list[str]:
    """One command per user, and one for the admin, who has all permissions in the account."""
    return [
        *(shlex.join(_command(role, rights, account)) for role, rights in permissions.items()),
        shlex.join(["nsc", "add", "user", "--account", account, "--name", "admin"]),
    ]


def _command(role: str, rights: dict[str, Any], account: str) -> list[str]:
    command = ["nsc", "add", "user", "--account", account, "--name", role]
    command += ["--allow-pub", ",".join(rights["publish"]["allow"])]
    command += ["--allow-sub", ",".join(rights["subscribe"]["allow"])]
    if responses := rights.get("allow_responses"):
        command.append(f"--allow-pub-response={responses['max']}")
        command += ["--response-ttl", responses["expires"]]
    return command


def _tokens(text: str) -> list[str]:
    tokens, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"permissions.conf: unexpected {text[at : at + 20]!r}")
        if match.lastgroup is not None:
            tokens.append(match["text"] if match.lastgroup == "text" else match[0])
        at = match.end()
    return tokens


def _map(tokens: list[str], at: int) -> tuple[dict[str, Any], int]:
    found: dict[str, Any] = {}
    while at < len(tokens) and tokens[at] != "}":
        key = tokens[at]
        at += 2 if tokens[at + 1] == ":" else 1
        found[key], at = _value(tokens, at)
        at += at < len(tokens) and tokens[at] == ","
    return found, at


def _value(tokens: list[str], at: int) -> tuple[Any, int]:
    if tokens[at] == "{":
        found, at = _map(tokens, at + 1)
        return found, at + 1
    if tokens[at] != "[":
        return tokens[at], at + 1
    end = tokens.index("]", at)
    return [token for token in tokens[at + 1 : end] if token != ","], end + 1


def _moved(value: Any, namespace: str) -> Any:
    """Replace the namespace, as described at the top of permissions.conf."""
    if isinstance(value, dict):
        return {key: _moved(each, namespace) for key, each in value.items()}
    if isinstance(value, list):
        return [_moved(each, namespace) for each in value]
    return re.sub(r"\beb\.", f"{namespace}.", value).replace("EB_", f"{namespace.upper()}_")


def main() -> None:
    """Print the commands."""
    parser = argparse.ArgumentParser(description="Print the nsc commands that create the users.")
    parser.add_argument("--account", default="EVENTBUS", help="the account of the users")
    parser.add_argument("--namespace", default="eb", help="BROADCAST_CHANNELS_PREFIX")
    given = parser.parse_args()
    permissions = read_permissions(PERMISSIONS.read_text(encoding="utf-8"), given.namespace)
    print("\n".join(commands(permissions, given.account)))


if __name__ == "__main__":
    main()
