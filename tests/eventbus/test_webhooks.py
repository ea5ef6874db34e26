"""What a receiver of webhooks checks, and what a service on the bus receives."""

import asyncio
import contextlib
import datetime
import hashlib
import hmac
import json
import time

import msgspec
import pytest
from hypothesis import given, strategies as st

from eventbus.bus import EventBus
from eventbus.channels import Subjects
from eventbus.config import Settings
from eventbus.errors import InvalidWebhook
from eventbus.webhooks import (
    LIFECYCLE_EVENTS,
    WebhookEvent,
    encode_event,
    encode_events,
    lifecycle_subject,
    listen_lifecycle,
    sign,
    verify,
)

SECRET = "a-secret-of-webhooks"
NOW = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
OCCUPIED = WebhookEvent(id="1", event="channel_occupied", channel="general", timestamp=NOW)
JOINED = WebhookEvent(
    id="2", event="member_joined", channel="presence.a", timestamp=NOW, user_id="7", info={"n": 1}
)


def request(body=None, secret=SECRET, at=None):
    body = encode_events([OCCUPIED, JOINED]) if body is None else body
    at = int(time.time()) if at is None else at
    headers = {"Eventbus-Timestamp": str(at), "Eventbus-Signature": sign(body, secret, at)}
    return headers, body


def reason(headers, body, secret=SECRET, **options):
    with pytest.raises(InvalidWebhook) as caught:
        verify(headers, body, secret, **options)
    return caught.value.reason


def test_events_of_a_signed_request_are_returned():
    assert verify(*request(), SECRET) == [OCCUPIED, JOINED]


def test_names_of_headers_may_have_any_case():
    headers, body = request()
    for change in (str.lower, str.upper):
        changed = {change(name): value for name, value in headers.items()}
        assert verify(changed, body, SECRET) == [OCCUPIED, JOINED]


def test_signature_is_the_hmac_that_the_documentation_promises():
    headers, body = request(at=1_700_000_000)
    signed = b"1700000000." + body
    digest = hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
    assert headers["Eventbus-Signature"] == f"v1={digest}"


def test_body_has_only_what_the_event_has():
    first, second = json.loads(encode_events([OCCUPIED, JOINED]))["events"]
    when = "2026-01-02T00:00:00Z"
    assert first == {
        "id": "1", "event": "channel_occupied", "channel": "general", "timestamp": when,
    }  # fmt: skip
    assert (second["user_id"], second["info"]) == ("7", {"n": 1})


@given(st.data())
def test_a_request_changed_by_one_byte_is_refused(data):
    headers, body = request()
    place = data.draw(st.integers(0, len(body) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda value: value != body[place]))
    assert reason(headers, body[:place] + bytes([other]) + body[place + 1 :]) == "signature"


def test_another_secret_or_time_is_refused():
    headers, body = request()
    assert reason(headers, body, "another-secret") == "signature"
    later = headers | {"Eventbus-Timestamp": str(int(time.time()) + 1)}
    assert reason(later, body) == "signature", "the time is signed too"


@pytest.mark.parametrize(
    "value", ["", "v1=", "v0=abc", "abc", "v1=ä", "v1=\ud800", ",,,", "v1=" * 9]
)
def test_invalid_signature_is_refused(value):
    headers, body = request()
    assert reason(headers | {"Eventbus-Signature": value}, body) == "signature"


def test_one_good_signature_among_several_is_enough():
    headers, body = request()
    both = {"Eventbus-Signature": f"v1=00, {headers['Eventbus-Signature']}"}
    assert verify(headers | both, body, SECRET) == [OCCUPIED, JOINED]


@pytest.mark.parametrize("value", ["", "x", "-1", "1.5", "²", "9" * 30, " 1"])
def test_invalid_time_is_refused(value):
    headers, body = request()
    assert reason(headers | {"Eventbus-Timestamp": value}, body) == "headers"


@pytest.mark.parametrize("name", ["Eventbus-Timestamp", "Eventbus-Signature"])
def test_missing_header_is_refused(name):
    headers, body = request()
    del headers[name]
    assert reason(headers, body) == "headers"


def test_old_requests_and_those_of_the_future_are_refused():
    now = int(time.time())
    for at in (now - 301, now + 302):
        assert reason(*request(at=at)) == "time"
    assert verify(*request(at=now - 200), SECRET)
    assert reason(*request(at=now - 200), tolerance_s=100) == "time"


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b'{"events":1}', b'{"events":[{}]}', b"\xff", b"[" * 100_000,
     b'{"events":[{"id":"1","event":"other","channel":"a","timestamp":"2026-01-02T00:00:00Z"}]}'],
)  # fmt: skip
def test_signed_body_without_events_is_refused(body):
    assert reason(*request(body)) == "body"


@pytest.mark.parametrize("stamp", ["0" * 5000, "9" * 5000, "1" * 13, "1\n", "١٢", "-1", "1e3"])
def test_time_of_any_length_or_form_is_judged_and_raises_nothing_else(stamp):
    headers, body = request()
    assert reason({**headers, "Eventbus-Timestamp": stamp}, body) == "headers"


@given(st.text(), st.text(), st.binary(), st.text(st.characters(codec="utf-8"), min_size=1))
def test_verifying_anything_raises_only_the_documented_error(stamp, signature, body, secret):
    with pytest.raises(InvalidWebhook):
        verify({"Eventbus-Timestamp": stamp, "Eventbus-Signature": signature}, body, secret)
    signed, _ = request(body, secret)
    assert reason(signed, body, secret) == "body"


webhook_keys = st.sampled_from(["events", "id", "event", "timestamp", "info", "channel"])
json_values = st.recursive(
    st.none() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(webhook_keys, inner),
)


@given(json_values.filter(lambda value: not (isinstance(value, dict) and "events" in value)))
def test_signed_json_of_another_shape_is_the_documented_error(value):
    assert reason(*request(json.dumps(value).encode())) == "body"


@given(json_values)
def test_signed_event_of_any_shape_is_an_event_or_the_documented_error(value):
    signed, body = request(json.dumps({"events": [value]}).encode())
    with contextlib.suppress(InvalidWebhook):
        assert [event.channel for event in verify(signed, body, SECRET)] == [value["channel"]]


def test_signed_body_nested_too_deeply_is_refused():
    for levels in (200, 100_000):
        deep = b'{"events":[{"info":' + b"[" * levels + b"]" * levels + b"}]}"
        assert reason(*request(deep)) == "body"


def test_an_empty_secret_is_not_a_secret():
    with pytest.raises(ValueError, match="empty secret"):
        verify(*request(secret=""), "")


def test_fields_of_a_newer_node_are_ignored():
    body = encode_events([OCCUPIED]).replace(b'"id"', b'"newer":[1],"id"')
    assert verify(*request(body), SECRET) == [OCCUPIED]


@pytest.mark.parametrize("driver", ["memory", "nats"])
async def test_services_receive_the_events_they_ask_for(settings, driver, caplog):
    async with EventBus(msgspec.structs.replace(settings, driver=driver)) as bus:
        received: list[WebhookEvent] = []
        came = asyncio.Event()
        members: list[WebhookEvent] = []

        def take(event):
            received.append(event)
            came.set()

        await listen_lifecycle(bus, members.append, events=["member_joined", "member_left"])
        subscription = await listen_lifecycle(bus, take)
        subject = lifecycle_subject(bus.subjects, "channel_occupied")
        for payload in (b"x", b"{}", b"\xff", b"[" * 10_000):
            await bus.driver.publish(subject, payload)
        for event in (OCCUPIED, OCCUPIED, JOINED):  # the first one arrives again
            await bus.driver.publish(
                lifecycle_subject(bus.subjects, event.event), encode_event(event)
            )
        async with asyncio.timeout(30):
            while len(received) < 2:
                came.clear()
                await came.wait()
        assert received == [OCCUPIED, JOINED]
        assert members == [JOINED]
        assert "not an event" in caplog.text
        await subscription.aclose()


def test_each_event_has_a_control_subject_of_its_own():
    subjects = [lifecycle_subject(Subjects("eb"), event) for event in LIFECYCLE_EVENTS]
    assert subjects[0] == "eb.control.lifecycle.channel_occupied"
    assert len(set(subjects)) == 4


async def test_async_listener_of_lifecycle_events_is_refused():
    async def handler(event):
        """Nothing would await this."""

    async with EventBus(Settings(driver="memory")) as bus:
        for wrong in (handler, lambda: None, None):
            with pytest.raises(TypeError, match="a handler"):
                await listen_lifecycle(bus, wrong)
