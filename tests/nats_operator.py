"""An operator of NATS with an account and users, as JWTs (version 2), made for a test."""

import base64
import json
import os
import runpy
import time
from pathlib import Path

import nkeys

COMPOSE = Path(__file__).parent.parent / "compose"
NOW_S = 60
"""How long before now what is made begins to count, for clocks that differ."""


class _Key:
    def __init__(self, prefix):
        self.seed = nkeys.encode_seed(os.urandom(32), prefix)
        self._pair = nkeys.from_seed(bytearray(self.seed))
        self.public = self._pair.public_key.decode()

    def token(self, subject, name, nats, **claims):
        """A JWT for a subject, signed by this key."""
        header = {"typ": "JWT", "alg": "ed25519-nkey"}
        body = {
            "jti": os.urandom(16).hex(), "iat": int(time.time()) - NOW_S, "iss": self.public,
            "sub": subject.public, "name": name, "nats": {"version": 2, **nats}, **claims,
        }  # fmt: skip
        signed = ".".join(_base64(json.dumps(part).encode()) for part in (header, body))
        return f"{signed}.{_base64(self._pair.sign(signed.encode()))}"


class Operator:
    """With one account, EVENTBUS, whose users have the rights of compose/nats/permissions.conf."""

    def __init__(self):
        self._own = _Key(nkeys.PREFIX_BYTE_OPERATOR)
        self._system = _Key(nkeys.PREFIX_BYTE_ACCOUNT)
        self._account = _Key(nkeys.PREFIX_BYTE_ACCOUNT)
        # A server cannot change its operator while it runs.
        self._token = self._own.token(
            self._own, "operator", {"type": "operator", "system_account": self._system.public}
        )
        self._revoked = {}
        text = (COMPOSE / "nats" / "permissions.conf").read_text(encoding="utf-8")
        read = runpy.run_path(str(COMPOSE / "nsc_users.py"))["read_permissions"]
        self.permissions = read(text)

    def config(self):
        """What nats-server is given, beside its own."""
        every = dict.fromkeys(
            ("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1
        ) | {"wildcards": True}
        store = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1)
        account = {"type": "account", "limits": every | store, "revocations": self._revoked}
        return {
            "operator": self._token,
            "system_account": self._system.public,
            "resolver": "MEMORY",
            "resolver_preload": {
                self._account.public: self._own.token(self._account, "EVENTBUS", account),
                self._system.public: self._own.token(
                    self._system, "SYS", {"type": "account", "limits": every}
                ),
            },
        }

    def user(self, role, name="", *, payload=-1, **claims):
        """Credentials of a new user, which are the text of a file; `admin` may do everything.

        `payload` limits the size of its messages.
        """
        key = _Key(nkeys.PREFIX_BYTE_USER)
        nats = {"type": "user", "subs": -1, "data": -1, "payload": payload, **self.rights(role)}
        return creds(self._account.token(key, name or role, nats, **claims), key.seed.decode())

    @staticmethod
    def now():
        """In whole seconds, as JWTs have it."""
        return int(time.time())

    def rights(self, role):
        """What a user's JWT has of permissions.conf."""
        if role == "admin":
            return {}
        found = self.permissions[role]
        rights = {"pub": found["publish"], "sub": found["subscribe"]}
        if responses := found.get("allow_responses"):
            minutes = int(responses["expires"].removesuffix("m"))
            rights["resp"] = {"max": int(responses["max"]), "ttl": minutes * 60 * 10**9}
        return rights

    def revoke_all(self):
        """Anything issued until now is invalid, once the server has the new config."""
        self._revoked = {"*": int(time.time()) - NOW_S}

    def renewed(self, role):
        """Credentials that count although all before were revoked."""
        return self.user(role, iat=int(time.time()) + 1)


def creds(jwt, seed):
    """The text of a file of credentials."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        "************************* IMPORTANT *************************\n"
        "NKEY Seed printed below can be used to sign and prove identity.\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )


def _base64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
