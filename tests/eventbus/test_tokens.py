"""Tokens that services sign: an edge's verifier accepts them, and bad ones are never signed."""

import pytest
from hypothesis import given, strategies as st

from eventbus.errors import ConfigError, EncodingError, InvalidPattern
from eventbus.tokens import TokenIssuer, TokenUser, issue_token
from eventbus_edge.access.token_keys import TokenPolicy
from eventbus_edge.access.tokens import TokenRejected, TokenVerifier

SECRET = "a-secret-of-tests-" + "x" * 46


def _verifier(**policy):
    return TokenVerifier(
        TokenPolicy(
            **{"secret": SECRET, "algorithms": ("HS256",), "audience": "websocket", **policy}
        )
    )


async def test_edge_reads_what_a_service_signed():
    token = issue_token(
        "7", secret=SECRET, lifetime=60, name="Ada", roles=["admin"], permissions=["p"],
        channels=["orders.*"], info={"colour": "red"},
    )  # fmt: skip
    claims = await _verifier().verify(token)
    assert (claims.user_id, claims.name) == ("7", "Ada")
    assert claims.roles == {"admin"}
    assert claims.permissions == {"p"}
    assert claims.channels == ("orders.*",)
    assert claims.info == {"colour": "red"}
    assert claims.exp - claims.iat == 60
    assert claims.jti


@given(user_id=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=255))
async def test_every_user_id_arrives_as_it_is(user_id):
    assert (await _verifier().verify(issue_token(user_id, secret=SECRET))).user_id == user_id


async def test_issuer_of_the_environment_signs_with_its_algorithm_audience_and_lifetime():
    issuer = TokenIssuer.from_env(
        {
            "JWT_SECRET": SECRET,
            "JWT_ALGORITHM": "HS512",
            "JWT_AUDIENCE": "shop",
            "JWT_ISSUER": "me",
            "JWT_LIFETIME": "90",
        }
    )
    assert SECRET not in repr(issuer)
    token = issuer.issue(TokenUser(user_id="7"))
    claims = await _verifier(algorithms=("HS512",), audience="shop", issuer="me").verify(token)
    assert claims.exp - claims.iat == 90
    with pytest.raises(TokenRejected):
        await _verifier().verify(token)


def test_issuer_without_a_key_uses_that_of_the_development_server_and_no_other(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="JWT_SECRET is not set"):
        TokenIssuer.from_env({})
    (tmp_path / ".eventbus").mkdir()
    (tmp_path / ".eventbus" / "dev-secret").write_text(f"development-only-{SECRET}\n")
    assert TokenIssuer.from_env({}).secret == f"development-only-{SECRET}"
    assert TokenIssuer.from_env({"JWT_SECRET": SECRET}).secret == SECRET
    with pytest.raises(ConfigError, match="no key"):
        TokenIssuer().issue("7")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"secret": "short"}, "at least 32 bytes"),
        ({"secret": "x" * 32, "algorithm": "HS384"}, "at least 48 bytes"),
        ({"secret": SECRET, "algorithm": "ES256"}, "JWT_PRIVATE_KEY"),
        ({"private_key": "pem"}, "JWT_ALGORITHM"),
        ({"private_key": "pem", "secret": SECRET}, "only one"),
    ],
)
def test_key_that_does_not_fit_is_refused_when_the_issuer_is_made(settings, message):
    with pytest.raises(ConfigError, match=message):
        TokenIssuer(**settings)


def test_key_that_is_not_a_key_is_refused_and_not_shown():
    issuer = TokenIssuer(private_key="-----BEGIN s3cr3t", algorithm="ES256")
    with pytest.raises(ConfigError) as refused:
        issuer.issue("7")
    assert "s3cr3t" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"user_id": ""}, ValueError),
        ({"user_id": "x" * 256}, ValueError),
        ({"lifetime": 0}, ValueError),
        ({"watchlist": ["x"] * 101}, ValueError),
        ({"lifetime": float("nan")}, ValueError),
        ({"lifetime": float("inf")}, ValueError),
        ({"channels": ["a..b"]}, InvalidPattern),
        ({"info": {"when": object()}}, EncodingError),
        ({"info": {"text": "x" * 9000}}, EncodingError),
        ({"info": {"text": "\ud800"}}, EncodingError),
    ],
    ids=lambda value: str(value).partition(" object at ")[0][:40],
)
def test_token_that_an_edge_would_refuse_is_not_signed(options, error):
    with pytest.raises(error):
        issue_token(**{"user_id": "7", "secret": SECRET, **options})
