"""Signatures that an application makes for clients of the Pusher protocol."""

import base64
import json

import pusher
import pytest

from eventbus.errors import ConfigError, EncodingError, InvalidName
from eventbus.integrations.pusher import PusherApp, sign, sign_user

APP = PusherApp(id="1001", key="app-key", secret="app-secret")
LIBRARY = pusher.Pusher(app_id="1001", key="app-key", secret="app-secret")


def test_signature_of_a_private_channel_is_that_of_the_official_library():
    assert sign("1234.5678", "private-orders", app=APP) == LIBRARY.authenticate(
        channel="private-orders", socket_id="1234.5678"
    )


def test_member_of_a_presence_channel_is_signed_as_it_is_sent():
    signed = sign("1.2", "presence-a", user_id="7", user_info={"name": "é", "id": "x"}, app=APP)
    assert json.loads(signed["channel_data"]) == {
        "user_id": "7", "user_info": {"id": "x", "name": "é"},
    }  # fmt: skip
    assert signed["auth"] == APP.sign_channel("1.2", "presence-a", signed["channel_data"])


def test_encrypted_channel_is_signed_with_its_key_as_by_the_official_library():
    key = base64.b64encode(b"\7" * 32).decode()
    library = pusher.Pusher(
        app_id="1001", key="app-key", secret="app-secret", encryption_master_key_base64=key
    )
    signed = sign("1234.5678", "private-encrypted-box", encryption_key=key, app=APP)
    expected = library.authenticate("private-encrypted-box", "1234.5678")
    assert signed == expected | {"shared_secret": expected["shared_secret"].decode()}
    assert signed["shared_secret"] == "zuN+clzV3Jp6Ax/iBan0t1wM4TZQjIjiLU5DCHmhC0I="
    assert "shared_secret" not in sign("1.2", "private-a", encryption_key=key, app=APP)


@pytest.mark.parametrize("key", ["", "short", base64.b64encode(b"x" * 31).decode(), "é" * 44])
def test_encrypted_channel_is_not_signed_without_a_valid_key(key):
    with pytest.raises(ValueError, match="32 bytes in Base64"):
        sign("1.2", "private-encrypted-box", encryption_key=key, app=APP)


def test_user_who_signs_in_is_signed_as_it_is_sent():
    signed = sign_user("1.2", "7", user_info={"name": "Ada"}, watchlist=["8"], app=APP)
    assert json.loads(signed["user_data"]) == {
        "id": "7", "user_info": {"name": "Ada"}, "watchlist": ["8"],
    }  # fmt: skip
    vector = sign_user("1234.5678", "7", app=APP)
    assert vector["user_data"] == '{"id":"7"}'
    assert vector["auth"] == (
        "app-key:8ec0344c9213077ebecad818feed86688e35be148b72432f675aec4fcdcff27e"
    )


def test_ids_that_are_numbers_as_in_django_are_signed_as_text():
    signed = sign("1.2", "presence-a", user_id=0, app=APP)
    assert json.loads(signed["channel_data"]) == {"user_id": "0", "user_info": {"id": "0"}}
    signed = sign_user("1.2", 7, watchlist=[8], app=APP)
    assert json.loads(signed["user_data"]) == {"id": "7", "watchlist": ["8"]}


def test_app_comes_from_the_environment(monkeypatch):
    with pytest.raises(ConfigError, match="PUSHER_APP"):
        sign("1.2", "private-a")
    monkeypatch.setenv("PUSHER_APP_ID", "1001")
    monkeypatch.setenv("PUSHER_APP_KEY", "app-key")
    monkeypatch.setenv("PUSHER_APP_SECRET", "app-secret")
    assert sign("1.2", "private-a") == sign("1.2", "private-a", app=APP)
    assert "app-secret" not in repr(PusherApp.from_env())


@pytest.mark.parametrize(
    ("socket_id", "name"),
    [("", "private-a"), ("1", "private-a"), ("1.2:x", "private-a"), ("1.2\n", "private-a"),
     ("1.2", "general"), ("1.2", "private-"), ("1.2", "private-a b"), ("1.2", "private-a:b")],
)  # fmt: skip
def test_what_could_sign_something_else_is_refused(socket_id, name):
    with pytest.raises(InvalidName):
        sign(socket_id, name, app=APP)


def test_presence_needs_a_user_and_the_watch_list_has_a_limit():
    with pytest.raises(ValueError, match="user_id"):
        sign("1.2", "presence-a", app=APP)
    with pytest.raises(ValueError, match="user_id"):
        sign_user("1.2", "", app=APP)
    with pytest.raises(ValueError, match="at most 100"):
        sign_user("1.2", "7", watchlist=["8"] * 101, app=APP)
    with pytest.raises(EncodingError):
        sign("1.2", "presence-a", user_id="7", user_info={"x": object()}, app=APP)
