"""Keys from a URL: rotation, outages, answers without keys, and floods of made-up tokens."""

import asyncio
import hmac
import json
import os
import ssl
import sys
import time
from urllib.parse import urlsplit

import jwt
import pytest
import trustme
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from eventbus.errors import ConfigError
from eventbus_edge.access.jwks import (
    MAX_BYTES,
    MAX_KEYS,
    BadKeySet,
    Jwks,
    read_key_set,
)
from eventbus_edge.access.token_keys import TokenPolicy
from eventbus_edge.access.tokens import (
    TokenRejected,
    TokenVerifier,
)

ALL = frozenset({"RS256", "ES256", "EdDSA"})
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
KEYS = {
    "RS256": RSA,
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
MAKERS = {
    "RS256": jwt.algorithms.RSAAlgorithm,
    "ES256": jwt.algorithms.ECAlgorithm,
    "EdDSA": jwt.algorithms.OKPAlgorithm,
}


def jwk(algorithm="ES256", kid="k1", key=None, **more):
    public = (key or KEYS[algorithm]).public_key()
    return json.loads(MAKERS[algorithm].to_jwk(public)) | {"kid": kid} | more


def pem():
    public = KEYS["ES256"].public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def key_set(*keys):
    return json.dumps({"keys": list(keys)}).encode()


def sign(algorithm="ES256", kid="k1", key=None, user="7", **claims):
    good = {"sub": user, "aud": "websocket", "exp": int(time.time()) + 60}
    headers = {} if kid is None else {"kid": kid}
    return jwt.encode(good | claims, key or KEYS[algorithm], algorithm, headers=headers)


class Provider:
    """An identity provider's server."""

    def __init__(self):
        self.answer = key_set(jwk())
        self.status = 200
        self.hangs = False
        self.fetches = 0
        self.url = ""

    async def handle(self, request):
        self.fetches += 1
        answer = web.Response(body=self.answer, status=self.status)
        if self.hangs:
            await asyncio.sleep(60)
        return answer


@pytest.fixture
async def provider():
    made = Provider()
    app = web.Application()
    app.router.add_get("/jwks", made.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/jwks"
    made.stop = runner.cleanup
    yield made
    await runner.cleanup()


@pytest.fixture
async def open_verifier(provider):
    opened = []

    async def make(**options):
        options = {"cooldown_s": 0.05, "timeout_s": 30.0} | options
        keys = Jwks(provider.url, ALL, **options)
        opened.append(keys)
        results = []
        await keys.open(results.append)
        verifier = TokenVerifier(TokenPolicy(algorithms=tuple(ALL)), keys=keys)
        verifier.results = results
        return verifier

    yield make
    for keys in opened:
        await keys.aclose()


async def code(verifier, token):
    with pytest.raises(TokenRejected) as caught:
        await verifier.verify(token)
    assert token not in str(caught.value)
    return caught.value.code


async def after_the_cooldown():
    await asyncio.sleep(0.06)


# The set


def test_keys_of_several_families_are_read_with_their_algorithms():
    payload = key_set(*(jwk(name, kid=name) for name in ALL))
    assert {key.kid: key.algorithms for key in read_key_set(payload, ALL)} == {
        name: {name} for name in ALL
    }


def test_keys_that_may_not_sign_or_do_not_fit_are_left_out():
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    good = jwk("ES256", kid="good")
    others = [
        {"kty": "oct", "kid": "good", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LTEyMw"},
        jwk("RS256", kid="enc", use="enc"),
        jwk("RS256", kid="ops", key_ops=["encrypt"]),
        jwk("RS256", kid="alg", alg="RS512"),
        jwk("RS256", kid="weak", key=weak),
        jwk("ES256", kid="curve", key=ec.generate_private_key(ec.SECP384R1())),
        {"kty": "EC", "kid": "broken", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": "new", "kid": "unknown"},
        {"kid": 3},
        "nonsense",
    ]
    assert [key.kid for key in read_key_set(key_set(*others, good), ALL)] == ["good"]


# Ids are given, since a key set is made anew by each process that collects.
@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"<html>", id="html"),
        pytest.param(b"\xff", id="not UTF-8"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b'{"keys":{}}', id="keys are no list"),
        pytest.param(b'{"keys":[]}', id="no keys"),
        pytest.param(b"[" * 100_000, id="too deep"),
        pytest.param(key_set({"kty": "oct", "k": "AAAA"}), id="symmetric"),
        pytest.param(key_set(*[jwk()] * (MAX_KEYS + 1)), id="too many"),
    ],
)
def test_payload_that_is_not_a_usable_key_set_is_refused(payload):
    with pytest.raises(BadKeySet):
        read_key_set(payload, ALL)


def test_a_private_key_that_was_published_verifies_and_does_no_more():
    private = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(KEYS["ES256"])) | {"kid": "k1"}
    [key] = read_key_set(key_set(private), ALL)
    assert isinstance(key.key, ec.EllipticCurvePublicKey)


# Tokens


@pytest.mark.parametrize("algorithm", sorted(ALL))
async def test_a_token_is_checked_with_the_key_that_it_names(provider, open_verifier, algorithm):
    provider.answer = key_set(*(jwk(name, kid=name) for name in ALL))
    verifier = await open_verifier()
    assert (await verifier.verify(sign(algorithm, algorithm))).user_id == "7"
    other = next(name for name in ALL if name != algorithm)
    assert await code(verifier, sign(algorithm, other)) == "unauthorized"
    assert provider.fetches <= 2


async def test_a_token_without_a_kid_needs_the_one_key_that_fits(provider, open_verifier):
    verifier = await open_verifier()
    assert (await verifier.verify(sign(kid=None))).user_id == "7"
    other = ec.generate_private_key(ec.SECP256R1())
    provider.answer = key_set(jwk(), jwk(kid="k2", key=other))
    await after_the_cooldown()
    await verifier.verify(sign(kid="k2", key=other))
    assert await code(verifier, sign(kid=None)) == "unauthorized"


async def test_a_token_of_another_key_or_algorithm_is_refused(open_verifier):
    verifier = await open_verifier()
    forged = ec.generate_private_key(ec.SECP256R1())
    assert await code(verifier, sign(key=forged)) == "unauthorized"
    head, payload, _ = sign().split(".")
    head = jwt.utils.base64url_encode(b'{"alg":"HS256","kid":"k1"}').decode()
    for public in (json.dumps(jwk()).encode(), pem()):  # the attack of RFC 8725, section 2.1
        made = hmac.digest(public, f"{head}.{payload}".encode(), "sha256")
        token = f"{head}.{payload}.{jwt.utils.base64url_encode(made).decode()}"
        assert await code(verifier, token) == "unauthorized"
    unsigned = jwt.encode({"sub": "7", "aud": "websocket", "exp": 2e9}, "", "none")
    assert await code(verifier, unsigned) == "unauthorized"
    assert await code(verifier, sign(aud="another")) == "unauthorized"
    assert await code(verifier, sign(exp=1)) == "token_expired"


async def test_a_key_that_is_new_is_fetched_when_it_is_first_named(provider, open_verifier):
    verifier = await open_verifier()
    await verifier.verify(sign())
    new = ec.generate_private_key(ec.SECP256R1())
    provider.answer = key_set(jwk(), jwk(kid="k2", key=new))
    await after_the_cooldown()
    assert (await verifier.verify(sign(kid="k2", key=new))).user_id == "7"
    assert provider.fetches == 2
    await verifier.verify(sign())
    assert provider.fetches == 2


async def test_a_key_that_was_withdrawn_is_refused_once_the_set_is_old(provider, open_verifier):
    verifier = await open_verifier(max_age_s=0.1)
    await verifier.verify(sign())
    new = ec.generate_private_key(ec.SECP256R1())
    provider.answer = key_set(jwk(kid="k2", key=new))
    await asyncio.sleep(0.11)
    assert await code(verifier, sign()) == "unauthorized"


@pytest.mark.parametrize("fault", ["500", "redirect", "html", "empty", "large", "hangs", "gone"])
async def test_a_bad_answer_keeps_the_old_keys(provider, open_verifier, fault):
    timeout_s = 0.3 if fault == "hangs" else 30.0
    verifier = await open_verifier(max_age_s=0.0, timeout_s=timeout_s)
    match fault:
        case "500":
            provider.status = 500
        case "redirect":
            provider.status = 302
        case "html":
            provider.answer = b"<html>"
        case "empty":
            provider.answer = key_set()
        case "large":
            provider.answer = key_set(jwk(more="x" * MAX_BYTES))
        case "hangs":
            provider.hangs = True
        case "gone":
            await provider.stop()
    await after_the_cooldown()
    start = time.monotonic()
    assert (await verifier.verify(sign())).user_id == "7"
    assert time.monotonic() - start < 20
    assert verifier.results == ["ok", "failed"]


async def test_a_flood_of_unknown_keys_causes_few_fetches(provider, open_verifier):
    verifier = await open_verifier(cooldown_s=0.5)
    start = time.monotonic()
    for round_ in range(10):
        tokens = [sign(kid=f"made-up-{round_}-{n}") for n in range(50)]
        codes = await asyncio.gather(*(code(verifier, token) for token in tokens))
        assert set(codes) == {"unauthorized"}
        assert (await verifier.verify(sign())).user_id == "7"
    assert provider.fetches <= 2 + (time.monotonic() - start) / 0.5


async def test_waiting_clients_share_one_fetch_that_none_of_them_cancels(provider, open_verifier):
    verifier = await open_verifier()
    new = ec.generate_private_key(ec.SECP256R1())
    provider.answer = key_set(jwk(kid="k2", key=new))
    await after_the_cooldown()
    token = sign(kid="k2", key=new)
    first, *others = [asyncio.ensure_future(verifier.verify(token)) for _ in range(20)]
    await asyncio.sleep(0)
    first.cancel()
    assert {claims.user_id for claims in await asyncio.gather(*others)} == {"7"}
    assert provider.fetches == 2


async def test_without_any_keys_tokens_are_not_called_bad_and_the_keys_are_sought_again(
    provider, open_verifier, caplog
):
    provider.status = 503
    verifier = await open_verifier()
    assert await code(verifier, sign()) == "unavailable"
    provider.status = 200
    await after_the_cooldown()
    assert (await verifier.verify(sign())).user_id == "7"
    assert "can be read again, after " in caplog.text


@pytest.mark.parametrize(
    "policy",
    [
        TokenPolicy(algorithms=("HS256",)),
        TokenPolicy(algorithms=("ES256", "HS256")),
        TokenPolicy(algorithms=("ES256",), secret="x" * 32),
        TokenPolicy(algorithms=()),
    ],
)
def test_a_secret_beside_a_url_is_refused(policy):
    with pytest.raises(ConfigError, match="JWT_"):
        TokenVerifier(policy, keys=Jwks("https://example.com/jwks", ALL))


@pytest.mark.parametrize(
    "url",
    [
        "example.com/jwks", "file:///etc/passwd", "ftp://a/b", "http://", "https://u:S3cr3t#1@h/",
        "https://u:S3cr3t@[::1/", "u:S3cr3t@h", "https://u:S3cr3t@h:x/", "https://u:p℀S3cr3t@h/",
    ],
)  # fmt: skip
def test_invalid_url_is_refused_without_showing_its_password(url):
    with pytest.raises(ConfigError, match="JWT_JWKS_URL") as caught:
        Jwks(url, ALL)
    assert "S3cr3t" not in str(caught.value)


@pytest.mark.parametrize("answer", ["none", "no HTTP", "no keys", "404"])
async def test_a_fetch_that_fails_is_logged_without_credentials_and_query(provider, answer, caplog):
    async def no_http(_, writer):
        writer.write(b"what is this\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(no_http, "127.0.0.1", 0)
    url = provider.url
    if answer == "none":
        await provider.stop()
    elif answer == "no HTTP":
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/jwks"
    elif answer == "404":
        provider.status = 404
    else:
        provider.answer = b"{}"
    caplog.clear()
    given = url.replace("http://", "http://app:S3cr3t%231@") + "?key=S3cr3t"
    keys = Jwks(given, ALL, timeout_s=5)
    results = []
    await keys.open(results.append)
    await keys.aclose()
    server.close()
    assert results == ["failed"]
    [record] = [r for r in caplog.records if r.name == "eventbus_edge.access.jwks"]
    assert f"no keys from {url.replace('http://', 'http://***@')}?***" in record.getMessage()
    assert "S3cr3t" not in record.getMessage()
    assert record.exc_info is None


# A node


async def test_a_node_takes_tokens_by_the_keys_of_its_url(start_edge, bus, provider):
    options = {"jwt_secret": "", "jwt_jwks_url": provider.url, "jwt_algorithms": tuple(ALL)}
    edge = await start_edge(bus, **options)
    client = await edge.connect("/ws/user.7", token=sign())
    assert (await client.next())["event"] == "eb:subscribed"
    assert (await edge.refusal(token=sign(kid="other")))[0] == 401
    assert edge.node.metrics.jwks_fetches.labels("ok")._value.get() == 1


async def test_a_node_without_keys_starts_answers_503_and_blames_no_client(
    start_edge, bus, provider
):
    provider.status = 500
    options = {"jwt_secret": "", "jwt_jwks_url": provider.url, "jwt_algorithms": ("ES256",)}
    edge = await start_edge(bus, **options)
    status, headers, problem = await edge.refusal(token=sign())
    assert (status, problem["code"]) == (503, "unavailable")
    assert "Retry-After" in headers
    client = await edge.connect("/ws/general")
    await client.next()
    for _ in range(5):
        assert await client.error("auth", data={"token": sign()}) == "unavailable"
    assert await client.receives_nothing()


@pytest.mark.parametrize("algorithm", MAKERS)
async def test_a_url_alone_is_enough_for_tokens_of_the_algorithms_of_its_keys(
    start_edge, bus, provider, algorithm
):
    provider.answer = key_set(jwk(algorithm))
    edge = await start_edge(bus, jwt_secret="", jwt_jwks_url=provider.url)
    client = await edge.connect("/ws/user.7", token=sign(algorithm))
    assert (await client.next())["event"] == "eb:subscribed"
    secret = jwt.encode({"sub": "7"}, pem().decode().encode().hex(), "HS256", {"kid": "k1"})
    assert (await edge.refusal(token=secret))[0] == 401


async def test_keys_are_fetched_through_the_proxy_of_the_environment(
    provider, http_proxy, monkeypatch
):
    monkeypatch.setenv("HTTP_PROXY", http_proxy.address)
    url = provider.url.replace("127.0.0.1", "keys.test")
    keys = Jwks(url, ALL)
    results = []
    await keys.open(results.append)
    await keys.aclose()
    assert results == ["ok"]
    assert keys.algorithms == ("ES256",)
    assert http_proxy.targets == [f"GET {urlsplit(url).netloc}"]


async def test_keys_of_a_tls_url_are_fetched_through_a_tunnel(
    provider, http_proxy, monkeypatch, tmp_path
):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("keys.test").configure_cert(tls)
    app = web.Application()
    app.router.add_get("/jwks", provider.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    host = f"keys.test:{runner.addresses[0][1]}"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from eventbus.cli.app import main; main()", "token", "inspect"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={
            **os.environ,
            "HTTPS_PROXY": http_proxy.address,
            "SSL_CERT_FILE": str(tmp_path / "ca.pem"),
            "JWT_JWKS_URL": f"https://{host}/jwks",
        },
    )
    out, _ = await process.communicate(sign().encode())
    await runner.cleanup()
    assert b"valid for another" in out
    assert http_proxy.targets == [f"CONNECT {host}"]


def test_a_proxy_that_cannot_be_used_stops_the_start(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:1080")
    with pytest.raises(ConfigError, match="HTTPS_PROXY"):
        Jwks("https://keys.test", ALL)
