#!/usr/bin/env python3
"""Creates the secrets for compose.yaml, in the folder secrets next to it.

    python compose/make_secrets.py --host events.example.com

Creates a private CA with certificates, an nkey per kind of NATS user, the users of Redis, and
random passwords. It needs only the dependencies of eventbus. It replaces existing files only with
--force. --renew creates new certificates, adds missing NATS users, and keeps everything else.
"""

import argparse
import datetime
import hashlib
import ipaddress
import os
import re
import secrets
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

import nkeys  # type: ignore[import-untyped]
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

FOLDER: Final = Path(__file__).parent / "secrets"
ROLES: Final = ("admin", "publisher", "edge", "worker", "cli", "backup", "site", "system")
CLIENTS: Final = ("nginx-client", "prometheus")
"""Clients with a certificate for edges that do not connect to NATS."""
NATS_SERVERS: Final = ("nats-1", "nats-2", "nats-3")
LOCAL: Final = ("localhost", "127.0.0.1")
AUTHORITY_DAYS: Final = 3650
OLDEST: Final = datetime.timedelta(hours=1)
"""Certificates are valid from this long ago, for clocks that are behind."""

_LABEL: Final = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST: Final = re.compile(rf"(\*\.)?({_LABEL}\.)*{_LABEL}")
_CLIENT, _SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH

# The commands that the Redis driver uses in the namespace "eb": scripts, the commands that they
# call, and subscriptions. Redis compares the pattern of a PSUBSCRIBE literally with the granted
# ones, and these patterns come from clients. So services with subscriptions need all channels.
_CONNECTING: Final = "+hello +auth +ping +select +client|setname +info +wait"
_STORING: Final = (
    "+evalsha +eval +script|load +time +publish +exists +del +rename +expire "
    "+hget +hmget +hset +hlen +xadd +xdel +xtrim +xrange +xrevrange +xlen"
)
_STATE: Final = "+hdel +hscan +zadd +zrem +zscore +zrange +get +set"
_LISTENING: Final = "+subscribe +unsubscribe +psubscribe +punsubscribe"
REDIS_USERS: Final = {
    "eventbus": f"~{{eb.* &* -@all {_CONNECTING} {_STORING} {_STATE} {_LISTENING} +scan",
    "publisher": f"~{{eb.live.* &eb.live.* -@all {_CONNECTING} {_STORING}",
}
"""Services with subscriptions, including edges; and services that only dispatch events."""


class Authority(NamedTuple):
    """The CA that signs all certificates."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def make_authority() -> Authority:
    """Create a new private CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("eventbus authority")
    usage = _usage(signs_certificates=True)
    builder = _certificate_builder(name, name, key.public_key(), AUTHORITY_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(usage, critical=True)
    return Authority(builder.sign(key, hashes.SHA256()), key)


def read_authority(folder: Path) -> Authority:
    """Read the existing CA. Raises OSError and ValueError."""
    key = load_pem_private_key((folder / "ca.key").read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("ca.key is not an elliptic curve key")  # noqa: TRY004 - the file is wrong
    return Authority(x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes()), key)


def make_certificate(
    authority: Authority, name: str, hosts: tuple[str, ...], uses: list[x509.ObjectIdentifier],
    days: int,
) -> dict[str, bytes]:  # fmt: skip
    """Create a certificate and its key, by file name."""
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = authority.certificate
    builder = _certificate_builder(_name(name), issuer.subject, key.public_key(), days)
    for extension, critical in (
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_usage(signs_certificates=False), True),
        (x509.ExtendedKeyUsage(uses), False),
        (x509.SubjectAlternativeName([_general_name(host) for host in hosts]), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), False),
    ):
        builder = builder.add_extension(extension, critical=critical)
    certificate = builder.sign(authority.key, hashes.SHA256())
    return {f"{name}.crt": certificate.public_bytes(Encoding.PEM), f"{name}.key": _pem(key)}


def make_certificates(authority: Authority, front: list[str], days: int) -> dict[str, bytes]:
    """Create all certificates.

    Some are for both uses: NATS servers connect to each other, Redis's health check connects to
    itself, and edges are clients of NATS and servers for nginx.
    """
    made: dict[str, bytes] = {}
    for server in NATS_SERVERS:
        made |= make_certificate(authority, server, (server, *LOCAL), [_SERVER, _CLIENT], days)
    made |= make_certificate(authority, "redis", ("redis", *LOCAL), [_SERVER, _CLIENT], days)
    hosts: tuple[str, ...] = tuple(dict.fromkeys((*front, *LOCAL)))
    made |= make_certificate(authority, "nginx", hosts, [_SERVER], days)
    for client in (*ROLES, *CLIENTS):
        hosts, uses = (f"{client}.eventbus",), [_CLIENT]
        if client == "edge":
            hosts, uses = (*hosts, client, *LOCAL), [_SERVER, _CLIENT]
        made |= make_certificate(authority, client, hosts, uses, days)
    return made


def make_nats_users(roles: Iterable[str], known: str = "") -> dict[str, bytes]:
    """Create seeds for NATS users, and nats.env: the lines `known` and the new public keys."""
    made: dict[str, bytes] = {}
    public = known.splitlines()
    for role in roles:
        seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
        made[f"{role}.nk"] = seed
        public.append(f"NKEY_{role.upper()}={nkeys.from_seed(bytearray(seed)).public_key.decode()}")
    return made | {"nats.env": _lines(public)}


def make_logins() -> dict[str, bytes]:
    """Create keys, passwords and users, by file name."""
    made = make_nats_users(ROLES)

    # Nobody can log in as the default user. Redis loads its append-only file as this user. Versions
    # without the fix of redis/redis#14541 discard the writes of scripts, which are transactions in
    # that file, if the user has no permission for them.
    users = ["user default off resetpass ~* &* +@all"]
    for user, rights in REDIS_USERS.items():
        password = secrets.token_urlsafe(32)
        made[f"redis_{user}_password"] = password.encode()
        digest = hashlib.sha256(password.encode()).hexdigest()
        users.append(f"user {user} on #{digest} {rights}")
    made["redis_users.acl"] = _lines([*users, "user health on nopass -@all +ping"])

    for name in ("jwt_secret", "api_key", "grafana_password"):
        made[name] = secrets.token_urlsafe(48).encode()
    return made


def write(folder: Path, files: dict[str, bytes]) -> None:
    """Write files for containers to read.

    Compose bind-mounts secrets, and containers run as other users. So everybody can read the files,
    but only the owner can enter their folder. Existing files are overwritten in place: a running
    container would keep a replaced file.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    for name, content in files.items():
        path = folder / name
        mode = 0o600 if name == "ca.key" else 0o644
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW
        with os.fdopen(os.open(path, flags, mode), "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.truncate()
            file.write(content)


def main() -> None:
    """Create or renew the secrets, and print the next steps."""
    given = _arguments()
    try:
        if given.renew:
            _renew(given.folder, given.host, given.days)
        else:
            _make(given.folder, given.host, given.days, replace=given.force)
    except OSError as exc:
        _fail(f"{exc.filename}: {exc.strerror}")


def _renew(folder: Path, hosts: list[str], days: int) -> None:
    try:
        authority = read_authority(folder)
        hosts = hosts or _hosts_of(folder / "nginx.crt")
    except (OSError, ValueError) as exc:
        _fail(f"{folder}: there is no CA to renew certificates with ({exc})")
    files = make_certificates(authority, hosts, days)
    public, users = folder / "nats.env", []
    if public.exists():
        users = [role for role in ROLES if not (folder / f"{role}.nk").exists()]
        files |= make_nats_users(users, public.read_text(encoding="ascii"))
    write(folder, files)
    new = f" New NATS users: {', '.join(users)}." if users else ""
    print(
        f"Created new certificates in {folder}, valid for {days} days.{new}\n"
        "Now restart one by one: the NATS servers, each when the one before is healthy; then the\n"
        "edges; then nginx."
    )


def _make(folder: Path, hosts: list[str], days: int, *, replace: bool) -> None:
    authority = make_authority()
    files = {
        "ca.crt": authority.certificate.public_bytes(Encoding.PEM),
        "ca.key": _pem(authority.key),
        **make_certificates(authority, hosts, days),
        **make_logins(),
    }
    there = sorted(name for name in files if (folder / name).exists())
    if there and not replace:
        _fail(
            f"{folder} has {', '.join(there[:3])}{' and others' if len(there) > 3 else ''}: "
            "nothing was changed. --renew creates new certificates. --force replaces everything; "
            "clients with old secrets are then refused"
        )
    write(folder, files)
    print(f"""{len(files)} files in {folder}:
  ca.crt, ca.key      the CA; move ca.key to a safe place: certificates signed with it are trusted
  *.crt, *.key        certificates of servers and clients, valid for {days} days
  *.nk, nats.env      the seeds of NATS users, and their public keys
  redis_*             the users of Redis, and their passwords
  jwt_secret, api_key, grafana_password
Next: docker compose -f compose/compose.yaml up --wait""")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Create the secrets for compose.yaml.")
    parser.add_argument(
        "--host", action="append", default=[], type=_host, metavar="NAME",
        help="a host name or address of nginx for clients, in addition to localhost; repeatable",
    )  # fmt: skip
    parser.add_argument("--days", type=_days, default=397, help="validity of certificates in days")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="the folder for the files")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--force", action="store_true", help="replace all existing files")
    what.add_argument("--renew", action="store_true", help="create new certificates")
    return parser.parse_args()


def _days(text: str) -> int:
    days = int(text) if text.isascii() and text.isdecimal() else 0
    if not 1 <= days <= AUTHORITY_DAYS:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: 1 to {AUTHORITY_DAYS} days")
    return days


def _host(text: str) -> str:
    try:
        _general_name(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}; allowed: a host name, such as events.example.com, or an IP address"
        ) from None
    return text


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if len(host) > 253 or _HOST.fullmatch(host) is None:
            raise
        return x509.DNSName(host)


def _hosts_of(path: Path) -> list[str]:
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names]


def _certificate_builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number())
        .not_valid_before(now - OLDEST)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _lines(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _fail(message: str) -> NoReturn:
    print(f"make_secrets: {message}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
