"""Tokens: which are accepted, and that every attack gets its code and never a crash."""

import base64
import contextlib
import hashlib
import hmac
import json
import random
import time
import warnings

import jwt
import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from eventbus.channels import Pattern
from eventbus.environment import load
from eventbus.errors import ConfigError
from eventbus_edge.access.token_keys import (
    TokenPolicy,
    read_public_key,
)
from eventbus_edge.access.tokens import (
    MAX_CACHED,
    MAX_CACHED_BYTES,
    MAX_HEADERS,
    MAX_TOKEN_BYTES,
    Claims,
    TokenRejected,
    TokenVerifier,
)
from eventbus_edge.access.verifiers import make_verifier
from eventbus_edge.config import EdgeSettings

SECRET = "a-secret-of-64-bytes-for-the-tests-0123456789-0123456789-0123456"
NOW = 1_800_000_000.0
CLAIMS = {"sub": "42", "aud": "websocket", "exp": NOW + 60}


def public_pem(key):
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def private_pem(key, form=PrivateFormat.PKCS8):
    return key.private_bytes(Encoding.PEM, form, NoEncryption()).decode()


RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
P256 = ec.generate_private_key(ec.SECP256R1())
OTHER_P256 = ec.generate_private_key(ec.SECP256R1())
P384 = ec.generate_private_key(ec.SECP384R1())
ED25519 = ed25519.Ed25519PrivateKey.generate()


def b64(data):
    data = data if isinstance(data, bytes) else json.dumps(data).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def craft(payload=CLAIMS, *, header=None, secret=SECRET):
    """A token signed by HS256 whatever its header says and whatever its payload is."""
    signed = f"{b64({'alg': 'HS256'} if header is None else header)}.{b64(payload)}"
    secret = secret if isinstance(secret, bytes) else secret.encode()
    signature = hmac.digest(secret, signed.encode(), "sha256")
    return f"{signed}.{b64(signature)}"


def claims(**changed):
    return {k: v for k, v in {**CLAIMS, **changed}.items() if v is not ...}


def verifier(**policy):
    policy = {"secret": SECRET, **policy}
    return TokenVerifier(TokenPolicy(**policy), clock=lambda: NOW)


async def rejection(token, checker=None):
    with pytest.raises(TokenRejected) as caught:
        await (checker or verifier()).verify(token)
    return caught.value


async def test_good_token_gives_its_claims():
    got = await verifier(issuer="https://id.example").verify(
        craft(
            claims(
                aud=["other", "websocket"],
                iss="https://id.example",
                iat=NOW,
                nbf=NOW - 1,
                jti="j1",
                roles=["editor"],
                permissions=["admin_channels"],
                name="Ada",
                info={"status": "here"},
                channels=["team.7", "orders.*", "logs.>"],
                unknown={"is": "ignored"},
            )
        )
    )
    assert (got.user_id, got.jti, got.exp) == ("42", "j1", NOW + 60)
    assert got.has_role("editor")
    assert not got.has_role("admin")
    assert got.has_permission("admin_channels")
    assert not got.is_admin
    assert got.grants == (Pattern("team.7"), Pattern("orders.*"), Pattern("logs.>"))
    assert got.presence_info() == {"status": "here", "name": "Ada"}


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        (SECRET, "HS256"),
        (SECRET, "HS384"),
        (SECRET, "HS512"),
        (RSA, "RS256"),
        (P256, "ES256"),
        (P384, "ES384"),
        (ED25519, "EdDSA"),
    ],
)
async def test_each_family_verifies_its_own_signature_and_no_other(key, algorithm):
    keys = {"secret": key} if key is SECRET else {"secret": "", "public_key": public_pem(key)}
    checker = verifier(algorithms=(algorithm,), **keys)
    token = jwt.encode(CLAIMS, key, algorithm=algorithm)
    assert (await checker.verify(token)).user_id == "42"
    second = jwt.encode({**CLAIMS, "sub": "43"}, key, algorithm=algorithm)
    assert (await checker.verify(second)).user_id == "43"
    head, _, signature = token.split(".")
    other = b64({**CLAIMS, "sub": "1"})
    assert (await rejection(f"{head}.{other}.{signature}", checker)).code == "unauthorized"


@pytest.mark.parametrize("role", [{"roles": ["admin"]}, {"permissions": ["admin"]}])
def test_admin_is_a_role_or_a_permission(role):
    assert Claims(sub="1", exp=NOW, **{k: frozenset(v) for k, v in role.items()}).is_admin


def test_name_of_the_info_wins_over_the_tokens():
    assert Claims(sub="1", exp=NOW, name="A", info={"name": "B"}).presence_info() == {"name": "B"}
    assert Claims(sub="1", exp=NOW).presence_info() == {}


NOT_A_JWT = "not a JWT"
ATTACKS = {
    "empty": ("", "empty"),
    "blank": (" ", NOT_A_JWT),
    "three dots": ("...", NOT_A_JWT),
    "two dots": ("..", NOT_A_JWT),
    "one part": ("abc", NOT_A_JWT),
    "four parts": (craft() + ".abc", NOT_A_JWT),
    "a line break": (craft() + "\n", NOT_A_JWT),
    "a null byte": (craft() + "\0", NOT_A_JWT),
    "padded": (craft() + "=", NOT_A_JWT),
    "non-ASCII": ("é" + craft(), NOT_A_JWT),
    "lone surrogate": ("\udcff" + craft(), NOT_A_JWT),
    "non-ASCII digits": ("٣.٣.٣", NOT_A_JWT),
    "big": (craft(claims(name="x" * MAX_TOKEN_BYTES)), "longer than"),
    "very big": ("." * 10_000_000, "longer than"),
    "truncated": (craft()[:-3], "signature does not verify"),
    "truncated within a byte": (craft()[:-2], "encoding"),
    "signature cut off": (craft().rpartition(".")[0] + ".", "not signed"),
    "tampered signature": (craft()[:-8] + "AAAAAAAA", "signature does not verify"),
    "other secret": (craft(secret=b"x" * 64), "signature does not verify"),
    "empty secret": (craft(secret=b""), "signature does not verify"),
    "header no JSON": (craft(header=b"{alg"), "header"),
    "header an array": (craft(header=["HS256"]), "header"),
    "header not UTF-8": (craft(header=b'{"alg":"\xff"}'), "header"),
    "header nested deep": (craft(header=b"[" * 3000), "header"),
    "no alg": (craft(header={}), "algorithm is not allowed"),
    "alg null": (craft(header={"alg": None}), "algorithm is not allowed"),
    "alg a list": (craft(header={"alg": ["HS256"]}), "algorithm is not allowed"),
    "alg an object": (craft(header={"alg": {"HS256": 1}}), "algorithm is not allowed"),
    "alg in lower case": (craft(header={"alg": "hs256"}), "algorithm is not allowed"),
    "alg of another strength": (craft(header={"alg": "HS512"}), "algorithm is not allowed"),
    "alg of another family": (craft(header={"alg": "RS256"}), "algorithm is not allowed"),
    "kid a path": (
        craft(header={"alg": "HS256", "kid": "../../dev/null"}, secret=b""),
        "signature does not verify",
    ),
    "kid SQL": (
        craft(header={"alg": "HS256", "kid": "' UNION SELECT 'k"}, secret=b"k"),
        "signature does not verify",
    ),
    "kid no string": (craft(header={"alg": "HS256", "kid": {"a": 1}}), "header"),
    "own key in jwk": (
        craft(
            header={"alg": "HS256", "jwk": {"kty": "oct", "k": b64(b"k" * 32)}}, secret=b"k" * 32
        ),
        "signature does not verify",
    ),
    "own key by jku": (
        craft(header={"alg": "HS256", "jku": "http://127.0.0.1:1/"}, secret=b"k"),
        "signature does not verify",
    ),
    "unknown critical header": (craft(header={"alg": "HS256", "crit": ["x"], "x": 1}), "header"),
    "detached payload": (craft(header={"alg": "HS256", "b64": False, "crit": ["b64"]}), "header"),
    "payload no JSON": (craft(b"sub=42"), "claims are not valid"),
    "payload empty": (craft(b"{}"), "`sub`"),
    "payload a string": (craft(b'"42"'), "claims are not valid"),
    "payload not UTF-8": (craft(b'{"sub":"\xff","exp":1}'), "claims are not valid"),
    "payload with a lone surrogate": (
        craft(b'{"exp":1,"sub":"\\ud800"}'),
        "claims are not valid",
    ),
    "payload nested deep": (
        craft(b'{"sub":"1","exp":1,"info":{"a":' + b"[" * 3000),
        "nested too deeply",
    ),
    "info nested": (craft(claims(info={"a": json.loads("[" * 17 + "]" * 17)})), "nested more than"),
    "no sub": (craft(claims(sub=...)), "`sub`"),
    "sub null": (craft(claims(sub=None)), "`sub`"),
    "sub empty": (craft(claims(sub="")), "$.sub"),
    "sub a number": (craft(claims(sub=42)), "$.sub"),
    "sub long": (craft(claims(sub="x" * 256)), "$.sub"),
    "no exp": (craft(claims(exp=...)), "`exp`"),
    "exp null": (craft(claims(exp=None)), "`exp`"),
    "exp a string": (craft(claims(exp="1900000000")), "$.exp"),
    "exp true": (craft(claims(exp=True)), "$.exp"),
    "exp NaN": (craft(claims(exp=float("nan"))), "claims are not valid"),
    "exp Infinity": (craft(claims(exp=float("inf"))), "claims are not valid"),
    "exp huge": (craft(claims(exp=1e300)), "$.exp"),
    "exp past 9999": (craft(claims(exp=253_402_300_800)), "milliseconds"),
    "exp of 1000 digits": (craft(b'{"sub":"1","exp":%s}' % (b"9" * 1000)), "$.exp"),
    "nbf in the future": (craft(claims(nbf=NOW + 6)), "not valid yet"),
    "iat beyond the leeway": (craft(claims(iat=NOW + 5.5)), "iat is in the future"),
    "iat in a thousand years": (craft(claims(iat=NOW + 3.2e10)), "iat is in the future"),
    "iat huge": (craft(claims(iat=1e300)), "$.iat"),
    "iat of 1000 digits": (craft(b'{"sub":"1","exp":2e9,"iat":%s}' % (b"9" * 1000)), "$.iat"),
    "iat a string": (craft(claims(iat=str(int(NOW)))), "$.iat"),
    "iat true": (craft(claims(iat=True)), "$.iat"),
    "iat a list": (craft(claims(iat=[NOW])), "$.iat"),
    "iat NaN": (craft(claims(iat=float("nan"))), "claims are not valid"),
    "nbf a string": (craft(claims(nbf="now")), "$.nbf"),
    "no aud": (craft(claims(aud=...)), "'websocket'"),
    "other aud": (craft(claims(aud="api")), "'websocket'"),
    "aud that contains the word": (craft(claims(aud="websockets")), "'websocket'"),
    "empty aud": (craft(claims(aud=[])), "'websocket'"),
    "aud an object": (craft(claims(aud={"websocket": 1})), "$.aud"),
    "expired, and of another aud": (craft(claims(aud="api", exp=1)), "'websocket'"),
    "roles a string": (craft(claims(roles="admin")), "$.roles"),
    "roles of numbers": (craft(claims(roles=[1])), "$.roles"),
    "permissions an object": (craft(claims(permissions={"admin": True})), "$.permissions"),
    "info a list": (craft(claims(info=[])), "$.info"),
    "name a number": (craft(claims(name=1)), "$.name"),
    "jti a number": (craft(claims(jti=1)), "$.jti"),
    "channels a string": (craft(claims(channels="team.7")), "$.channels"),
    "a channel with a space": (craft(claims(channels=["team 7"])), "team 7"),
    "a channel with > inside": (craft(claims(channels=["a.>.b"])), "a.>.b"),
    "an empty channel": (craft(claims(channels=[""])), "pattern"),
}


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("attack", ATTACKS)
async def test_bad_token_is_unauthorized_and_the_message_says_why_without_it(attack, is_first):
    token, words = ATTACKS[attack]
    checker = verifier()
    if not is_first:  # its header may be that of a token that was accepted
        await checker.verify(craft(claims(sub="another")))
    refused = await rejection(token, checker)
    assert refused.code == "unauthorized"
    assert words in str(refused)
    for part in token.split("."):
        assert len(part) < 12 or part not in str(refused)


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE", ""])
@pytest.mark.parametrize("signature", ["", "AAAA"])
async def test_alg_none_is_refused_in_every_spelling(alg, signature):
    token = f"{b64({'alg': alg})}.{b64(CLAIMS)}.{signature}"
    assert (await rejection(token)).code == "unauthorized"


@pytest.mark.parametrize("encoding", ["pem", "stripped", "der"])
async def test_public_key_as_hmac_secret_signs_nothing(encoding):
    pem = public_pem(RSA)
    secret = {
        "pem": pem.encode(),
        "stripped": pem.strip().encode(),
        "der": RSA.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
    }[encoding]
    checker = verifier(secret="", public_key=pem, algorithms=("RS256",))
    refused = await rejection(craft(secret=secret), checker)
    assert (refused.code, "not allowed" in str(refused)) == ("unauthorized", True)


@pytest.mark.parametrize("exp", [NOW - 5, NOW - 3600, 0, -1, -1e300, -0.0, int(NOW) - 5], ids=str)
async def test_token_past_its_exp_is_expired(exp):
    assert (await rejection(craft(claims(exp=exp)))).code == "token_expired"


async def test_leeway_is_granted_on_both_ends_and_no_more():
    within = claims(exp=NOW - 4.9, nbf=NOW + 5, iat=NOW + 5)
    assert await verifier().verify(craft(within))
    assert (await rejection(craft(claims(iat=NOW + 0.5)), verifier(leeway_s=0))).reason == (
        "not_yet_valid"
    )
    assert (await rejection(craft(within), verifier(leeway_s=0))).code == "unauthorized"
    assert (await rejection(craft(claims(exp=NOW)), verifier(leeway_s=0))).code == "token_expired"


@pytest.mark.parametrize("iss", [..., None, "", "https://evil.example", "https://id.example/"])
async def test_other_issuer_is_refused_where_one_is_configured(iss):
    refused = await rejection(craft(claims(iss=iss)), verifier(issuer="https://id.example"))
    assert "'https://id.example'" in str(refused)


async def test_random_changes_of_a_token_never_crash_and_never_pass():
    rng, good, checker = random.Random(7), craft(), verifier()
    alphabet = "ABCabc019-_.=+/ \0é"
    for _ in range(500):
        token = list(good)
        for _ in range(rng.randrange(1, 4)):
            token[rng.randrange(len(token))] = rng.choice(alphabet)
        if (changed := "".join(token)) != good:
            await rejection(changed, checker)


async def test_signature_of_a_token_is_checked_once_and_its_times_each_time():
    times = iter([NOW, NOW, NOW + 600])
    checker = TokenVerifier(TokenPolicy(secret=SECRET), clock=lambda: next(times))
    token = craft()
    first, second = await checker.verify(token), await checker.verify(token)
    assert first == second
    assert first.info is not second.info  # an application may change what it gets
    first.info["more"] = 1
    assert second.info == {}
    assert checker._cached_claims.cache_info()[:2] == (1, 1)  # hits, misses
    assert (await rejection(token, checker)).code == "token_expired"


async def test_only_headers_of_accepted_tokens_are_known_and_only_some():
    checker = verifier()
    await rejection(craft(header={"alg": "HS256", "kid": "no"}, secret=b"x" * 64), checker)
    assert checker._algorithms_of == {}
    for number in range(2 * MAX_HEADERS):
        header = {"alg": "HS256", "kid": str(number)}
        for user in ("1", "2"):
            token = craft(claims(sub=user), header=header)
            assert (await checker.verify(token)).user_id == user
    assert len(checker._algorithms_of) == MAX_HEADERS


async def test_long_and_bad_tokens_are_not_kept():
    checker = verifier()
    for token in (craft(claims(name="x" * MAX_CACHED_BYTES)), craft(secret="another")):
        with contextlib.suppress(TokenRejected):
            await checker.verify(token)
    assert checker._cached_claims.cache_info().currsize == 0
    assert checker._cached_claims.cache_info().maxsize == MAX_CACHED


async def test_key_of_the_same_id_that_is_another_key_is_checked_again():
    keys = [jwt.PyJWK.from_dict(jwk(key), "ES256") for key in (P256, OTHER_P256)]

    class Source:
        async def find(self, _kid, _algorithm):
            return keys[0]

    policy = TokenPolicy(algorithms=("ES256",))
    checker = TokenVerifier(policy, keys=Source(), clock=lambda: NOW)
    token = jwt.encode(CLAIMS, private_pem(P256), "ES256", headers={"kid": "1"})
    for _ in range(2):
        assert (await checker.verify(token)).sub == "42"
    keys.reverse()
    assert (await rejection(token, checker)).reason == "signature"


def jwk(key):
    return jwt.algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True)


async def test_verifier_continues_after_bad_tokens():
    checker = verifier()
    for token, _ in ATTACKS.values():
        await rejection(token, checker)
    assert (await checker.verify(craft())).user_id == "42"


@pytest.mark.parametrize(
    ("policy", "variable", "words"),
    [
        ({"secret": ""}, "JWT_SECRET", "JWT_PUBLIC_KEY"),
        ({"secret": "short"}, "JWT_SECRET", "5 bytes; HS256 needs at least 32"),
        ({"secret": "x" * 31}, "JWT_SECRET", "31 bytes"),
        ({"secret": "x" * 47, "algorithms": ("HS256", "HS384")}, "JWT_SECRET", "at least 48"),
        ({"secret": "x" * 63, "algorithms": ("HS512",)}, "JWT_SECRET", "at least 64"),
        ({"secret": public_pem(RSA)}, "JWT_SECRET", "another family"),
        ({"secret": "-----BEGIN PUBLIC KEY-----" + "x" * 64}, "JWT_SECRET", "another family"),
        ({"secret": "ssh-rsa " + "A" * 64}, "JWT_SECRET", "another family"),
        ({"algorithms": ()}, "JWT_ALGORITHMS", "is empty"),
        ({"algorithms": ("none",)}, "JWT_ALGORITHMS", "'none'"),
        ({"algorithms": ("HS256", "RS256")}, "JWT_ALGORITHMS", "'RS256'"),
        ({"algorithms": ("hs256",)}, "JWT_ALGORITHMS", "'hs256'"),
        ({"public_key": public_pem(RSA)}, "JWT_PUBLIC_KEY", "one family"),
        ({"secret": "", "public_key": public_pem(RSA)}, "JWT_ALGORITHMS", "'HS256'"),
        (
            {"secret": "", "public_key": public_pem(RSA), "algorithms": ("RS256", "ES256")},
            "JWT_ALGORITHMS",
            "'ES256'",
        ),
        (
            {"secret": "", "public_key": public_pem(P384), "algorithms": ("ES256",)},
            "JWT_ALGORITHMS",
            "JWT_PUBLIC_KEY: ES384",
        ),
        (
            {"secret": "", "public_key": private_pem(P256), "algorithms": ("ES256",)},
            "JWT_PUBLIC_KEY",
            "private key",
        ),
        ({"secret": "", "public_key": "no key"}, "JWT_PUBLIC_KEY", "PEM"),
        ({"secret": "", "public_key": public_pem(RSA)[:80]}, "JWT_PUBLIC_KEY", "PEM"),
        (
            {
                "secret": "",
                "public_key": public_pem(rsa.generate_private_key(65537, 1024)),
                "algorithms": ("RS256",),
            },
            "JWT_PUBLIC_KEY",
            "1024 bits",
        ),
        (
            {
                "secret": "",
                "public_key": public_pem(ec.generate_private_key(ec.SECP256K1())),
                "algorithms": ("ES256",),
            },
            "JWT_PUBLIC_KEY",
            "kind",
        ),
    ],
)
def test_keys_that_are_weak_or_do_not_fit_stop_the_start(policy, variable, words):
    with pytest.raises(ConfigError) as caught:
        verifier(**policy)
    assert caught.value.variable == variable
    assert variable in str(caught.value)
    assert words in str(caught.value)
    if secret := policy.get("secret"):
        assert secret not in str(caught.value)


def test_policy_shows_no_secret():
    assert SECRET not in repr(TokenPolicy(secret=SECRET))


def test_smallest_allowed_secret_raises_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert verifier(secret="x" * hashlib.sha256().digest_size)


def test_public_key_comes_from_a_file(tmp_path):
    file = tmp_path / "key.pem"
    file.write_text(public_pem(ED25519))
    assert read_public_key(str(file)) == public_pem(ED25519)


@pytest.mark.parametrize("key", [RSA, P256, ED25519], ids=["RSA", "P-256", "Ed25519"])
@pytest.mark.parametrize(
    "written",
    [
        lambda text: text,
        lambda text: text.strip(),
        lambda text: text.replace("\n", "\\n"),
        lambda text: text.replace("\n", "\\r\\n"),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", " "),
        lambda text: f'"{text.replace(chr(10), chr(92) + "n")}"',
        lambda text: f"# the key\n{text}\n",
    ],
    ids=["lines", "stripped", "n", "rn", "CRLF", "spaces", "quoted", "a comment"],
)
async def test_public_key_may_be_a_text_and_verifies_by_its_own_algorithms(key, written):
    settings = load(EdgeSettings, {"JWT_PUBLIC_KEY": written(public_pem(key))})
    checker = make_verifier(settings, None)
    for algorithm in checker.algorithms:
        token = jwt.encode(CLAIMS | {"exp": time.time() + 60}, key, algorithm=algorithm)
        assert (await checker.verify(token)).user_id == "42"
    forged = jwt.encode(CLAIMS, SECRET, algorithm="HS256")
    assert (await rejection(forged, checker)).reason == "algorithm"


def certificate():
    return trustme.CA().cert_pem.bytes().decode()


WRONG_KEYS = {
    "a certificate": (certificate(), "is a certificate"),
    "a chain": (certificate() + certificate(), "is a certificate"),
    "a private key": (private_pem(RSA), "is a private key"),
    "a private key of EC": (private_pem(P256, PrivateFormat.TraditionalOpenSSL), "private key"),
    "a private key in one line": (private_pem(RSA).replace("\n", "\\n"), "is a private key"),
    "both keys": (public_pem(RSA) + private_pem(RSA), "is a private key"),
    "a request": (
        "-----BEGIN CERTIFICATE REQUEST-----\nS3cr3t\n-----END CERTIFICATE REQUEST-----",
        "'CERTIFICATE REQUEST'",
    ),
    "a damaged key": (public_pem(RSA).replace("A", "!"), "damaged"),
    "half a key": (public_pem(RSA)[:200], "not a public key in PEM"),
    "base64 alone": ("".join(private_pem(RSA).splitlines()[1:-1]), "neither the text of a PEM"),
    "short base64": ("".join(private_pem(ED25519).splitlines()[1:-1]), "neither the text of a PEM"),
    "a JWK": (json.dumps({"kty": "oct", "k": "S3cr3t"}), "neither the text of a PEM"),
    "SSH": ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI a@b", "neither the text of a PEM"),
}


@pytest.mark.parametrize("given", ["as a text", "in a file"])
@pytest.mark.parametrize("name", WRONG_KEYS)
def test_text_other_than_a_public_key_is_recognized_and_never_quoted(tmp_path, name, given):
    text, words = WRONG_KEYS[name]
    value = text
    if given == "in a file":
        (tmp_path / "key.pem").write_text(text)
        value = str(tmp_path / "key.pem")
        words = words.replace("neither the text of a PEM", "JWT_PUBLIC_KEY is")
    settings = EdgeSettings(jwt_public_key=value)
    with pytest.raises(ConfigError) as refused:
        make_verifier(settings, None)
    assert refused.value.variable == "JWT_PUBLIC_KEY"
    assert words in str(refused.value)
    for part in text.replace("\\n", "\n").split():
        assert len(part) < 16 or part.startswith("-----") or part not in str(refused.value)
    assert "S3cr3t" not in str(refused.value)
    assert text[:40] not in repr(settings)


@pytest.mark.parametrize("name", ["roles", "permissions", "info", "channels", "name", "jti", "iat",
                                  "nbf", "iss"])  # fmt: skip
async def test_null_claim_counts_as_absent(name):
    got = await verifier().verify(craft(claims(**{name: None})))
    assert got == await verifier().verify(craft(claims(**{name: ...})))


@pytest.mark.parametrize("name", ["exp", "iat", "nbf"])
@pytest.mark.parametrize("value", [NOW * 1000, int(NOW * 1000)])
async def test_times_in_milliseconds_are_named_as_such(name, value):
    refused = await rejection(craft(claims(**{name: value})))
    assert refused.reason == "claims"
    assert str(refused).startswith(f"the token's {name} is in milliseconds")


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_unreadable_key_file_names_variable_and_path(tmp_path, content):
    file = tmp_path / "key.pem"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"JWT_PUBLIC_KEY='.*key\.pem'"):
        read_public_key(str(file))
