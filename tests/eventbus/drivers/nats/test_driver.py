import asyncio
import contextlib
import gc
import json
import logging
import os
import signal
import socket
import time
import weakref

import msgspec
import nats
import pytest
import pytest_asyncio

from eventbus.attempts import Backoff
from eventbus.config import Settings
from eventbus.drivers.nats import publish as nats_publish
from eventbus.drivers.nats.connection import connection as nats_connection
from eventbus.drivers.nats.driver import NatsDriver
from eventbus.errors import (
    ConfigError,
    ConnectionFailed,
    EncodingError,
    InvalidChannel,
    InvalidPattern,
    PublishFailed,
    ServerError,
    StreamMismatch,
)
from eventbus.server import NatsServer
from eventbus.testing.contracts.driver import Inbox
from tests.eventbus.drivers.nats.conftest import BYTES, opened, until
from tests.ports import free_port

RECONNECT = "eventbus.drivers.nats.connection.connection._SERVER_BACKOFF"


def replace(settings, **changes):
    return msgspec.structs.replace(settings, **changes)


@pytest_asyncio.fixture
async def driver(settings):
    async with opened(settings) as driver:
        yield driver


@pytest_asyncio.fixture
async def raw(nats_server):
    nc = await nats.connect(nats_server.url)
    yield nc
    await nc.close()


async def restart(server, *, kill=True):
    if kill:
        os.kill(server.pid, signal.SIGKILL)
    await server.stop()
    await server.start()


def stream_config(namespace, **changes):
    config = {
        "name": f"{namespace.upper()}_EVENTS",
        "subjects": [f"{namespace}.event.>"],
        "republish": {"src": f"{namespace}.event.>", "dest": f"{namespace}.live.>"},
        "allow_direct": True,
        "max_bytes": BYTES,
    }
    return {name: value for name, value in (config | changes).items() if value is not None}


async def api(nc, what, name, config=None):
    payload = b"" if config is None else json.dumps(config).encode()
    answer = await nc.request(f"$JS.API.STREAM.{what}.{name}", payload, timeout=30)
    return json.loads(answer.data)


async def recreate(nc, namespace):
    name = f"{namespace.upper()}_EVENTS"
    config = (await api(nc, "INFO", name))["config"]
    assert (await api(nc, "DELETE", name))["success"]
    async with asyncio.timeout(30):  # a busy server still removes the files of the one before
        while (await api(nc, "CREATE", name, config)).get("error"):  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.05)


class TestConnecting:
    async def test_refused_connection_is_an_error_within_the_time_given(self):
        port = free_port()
        settings = Settings(nats_url=f"nats://me:hidden@127.0.0.1:{port}", connect_timeout=0.3)
        started = time.monotonic()
        with pytest.raises(ConnectionFailed, match="cannot connect") as caught:
            await NatsDriver(settings).open()
        assert time.monotonic() - started < 10
        message = str(caught.value)
        assert f"nats://***@127.0.0.1:{port}" in message
        assert "Connect call failed" in message
        assert "hidden" not in message

    async def test_server_that_comes_up_late_is_waited_for(self, tmp_path):
        async with NatsServer(tmp_path) as server:
            pass
        settings = Settings(nats_url=server.url, history_bytes=BYTES, connect_timeout=10)
        driver = NatsDriver(settings)
        opening = asyncio.create_task(driver.open())
        async with server:
            await opening
            assert driver.is_connected
            await driver.aclose()

    @pytest.mark.parametrize("user", ["me:wrong@", "wrongtoken@", ""])
    async def test_wrong_credentials_are_an_error_at_once(self, user, caplog):
        config = {"authorization": {"user": "me", "password": "right"}}
        async with NatsServer(config=config) as server:
            url = server.url.replace("://", f"://{user}")
            with pytest.raises(ConnectionFailed, match="refuses the credentials") as caught:
                async with asyncio.timeout(30):
                    await NatsDriver(Settings(nats_url=url, connect_timeout=60)).open()
        assert "wrong" not in str(caught.value) + caplog.text

    async def test_credentials_of_the_url_are_used(self):
        config = {"authorization": {"user": "me", "password": "right"}}
        async with NatsServer(config=config) as server:
            url = server.url.replace("://", "://me:right@")
            async with opened(Settings(nats_url=url, history_bytes=BYTES)) as driver:
                assert await driver.publish("eb.event.a", b"x") is not None

    async def test_server_that_says_nothing_is_an_error_within_the_time_given(self):
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            url = f"nats://127.0.0.1:{silent.getsockname()[1]}"
            with pytest.raises(ConnectionFailed, match=r"not within 0\.3 s"):
                await NatsDriver(Settings(nats_url=url, connect_timeout=0.3)).open()

    async def test_server_without_jetstream_is_an_error_that_says_so(self):
        async with NatsServer(config={"jetstream": False}) as server:
            with pytest.raises(ConnectionFailed, match=r"no JetStream"):
                await NatsDriver(Settings(nats_url=server.url, connect_timeout=0.5)).open()

    @pytest.mark.parametrize("url", ["nats://127.0.0.1:port", "nats://", "nats://a:1,ws://b:2"])
    async def test_url_that_cannot_be_read_is_an_error(self, url):
        with pytest.raises((ConfigError, ConnectionFailed), match=r"NATS_URL|connecting"):
            await NatsDriver(Settings(nats_url=url, connect_timeout=1)).open()

    async def test_missing_credentials_file_is_an_error_naming_the_variable(self, settings):
        with pytest.raises(ConnectionFailed, match=r"NATS_CREDS='/no/such/file'"):
            await NatsDriver(replace(settings, nats_creds="/no/such/file")).open()

    async def test_failed_open_leaves_no_task_and_no_socket(self):
        before = asyncio.all_tasks()
        with pytest.raises(ConnectionFailed):
            await NatsDriver(Settings(nats_url="nats://127.0.0.1:1", connect_timeout=0.2)).open()
        assert asyncio.all_tasks() == before

    async def test_closed_driver_leaves_no_task(self, settings):
        before = asyncio.all_tasks()
        async with opened(settings) as driver:
            await driver.subscribe(f"{settings.namespace}.live.>", Inbox())
            await driver.publish(f"{settings.namespace}.event.a", b"x")
        assert asyncio.all_tasks() == before

    async def test_closed_subscription_is_freed_at_once(self, driver, namespace):
        gc.disable()  # a full collection is rare in a process with many subscriptions
        try:
            subscription = await driver.subscribe(f"{namespace}.live.a", Inbox())
            await subscription.aclose()
            is_freed = weakref.ref(subscription)
            del subscription
            await until(lambda: is_freed() is None)
        finally:
            gc.enable()

    async def test_answer_that_is_older_than_a_gap_does_not_hide_it(
        self, driver, namespace, monkeypatch
    ):
        inbox, event = Inbox(), f"{namespace}.event.a"
        subscription = await driver.subscribe(f"{namespace}.live.a", inbox)
        asked, may_answer = asyncio.Event(), asyncio.Event()
        query = driver._stream.state

        async def slow():
            state = await query()
            asked.set()
            await may_answer.wait()
            return state

        monkeypatch.setattr(driver._stream, "state", slow)
        driver._subscriptions.resync(subscription)
        await asyncio.wait_for(asked.wait(), 30)
        monkeypatch.setattr(driver._stream, "state", query)

        await driver.publish(event, b"1")
        await inbox.until(1)
        at_server, client = subscription.at_server, driver._connection.client
        await at_server.withdraw()
        await driver.publish(event, b"2")  # missed
        await at_server.send(client, 0)
        await driver.publish(event, b"3")
        await until(lambda: subscription._pending)
        may_answer.set()
        await inbox.until(3)
        assert [each.payload for each in inbox.deliveries] == [b"1", b"2", b"3"]

    async def test_open_that_is_cancelled_once_connected_leaves_no_connection(
        self, settings, monkeypatch
    ):
        made, connected = [], asyncio.Event()

        class Client(nats_connection.FastClient):
            def __init__(self, *arguments):
                super().__init__(*arguments)
                made.append(self)

        async def end(connecting):
            await asyncio.wait([connecting])
            connected.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(nats_connection, "FastClient", Client)
        monkeypatch.setattr(nats_connection, "end", end)
        opening = asyncio.create_task(NatsDriver(settings).open())
        await asyncio.wait_for(connected.wait(), 30)
        assert made[0].is_connected
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        assert [each.is_closed for each in made] == [True]

    async def test_opening_twice_is_an_error(self, driver):
        with pytest.raises(ConnectionFailed, match="not new"):
            await driver.open()

    @pytest.mark.parametrize("subject", ["", "a..b", ".a", "a.", "a b", "a.*", "a.>", "a\x0b", "ä"])
    async def test_subject_that_would_harm_others_is_never_published_to(self, driver, subject):
        with pytest.raises(InvalidChannel, match="not a subject"):
            await driver.publish(subject, b"x")

    @pytest.mark.parametrize("subject", ["", "a..b", "a.>.b", "a*", "a b", "a\x0c", "ä"])
    async def test_filter_that_would_never_match_is_refused(self, driver, subject):
        with pytest.raises(InvalidPattern, match="not a subject"):
            await driver.subscribe(subject, Inbox())


class TestEmbedded:
    def settings(self, tmp_path):
        return Settings(nats_data=str(tmp_path / "nats"), nats_port=0, history_bytes=BYTES)

    async def test_without_a_url_a_server_is_started_and_ended(self, tmp_path):
        async with opened(self.settings(tmp_path)) as driver:
            assert driver.server is not None
            pid = driver.server.pid
            assert (await driver.publish("eb.event.a", b"x")).position.offset == 1
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        async with opened(self.settings(tmp_path)) as driver:
            again = await driver.publish("eb.event.a", b"x")
            assert again.position.offset == 2, "the data was kept"

    async def test_second_driver_of_one_folder_is_an_error_with_the_url_in_production(
        self, tmp_path
    ):
        settings = msgspec.structs.replace(self.settings(tmp_path), environment="production")
        async with opened(settings) as driver:
            with pytest.raises(ServerError, match=f"NATS_URL={driver.server.url}"):
                await NatsDriver(settings).open()
            assert await driver.publish("eb.event.a", b"x") is not None

    async def test_killed_server_is_started_again_and_nothing_acknowledged_is_lost(self, tmp_path):
        inbox = Inbox()
        async with opened(self.settings(tmp_path)) as driver:
            subscription = await driver.subscribe("eb.live.a", inbox)
            first = await driver.publish("eb.event.a", b"before")
            os.kill(driver.server.pid, signal.SIGKILL)
            second = await driver.publish("eb.event.a", b"after")
            assert second.position == (first.position.offset + 1, subscription.position.epoch)
            await inbox.until_payload(lambda payloads: b"after" in payloads)

    async def test_failed_open_ends_the_server(self, tmp_path, monkeypatch):
        settings = replace(self.settings(tmp_path), history_replicas=3)
        driver = NatsDriver(settings)
        with pytest.raises(StreamMismatch, match="BROADCAST_HISTORY_REPLICAS"):
            await driver.open()
        assert not driver.server.is_running


class TestStream:
    async def test_stream_is_made_from_the_settings(self, settings, raw, namespace):
        async with opened(replace(settings, history_messages=7, history_seconds=90)):
            info = await api(raw, "INFO", f"{namespace.upper()}_EVENTS")
        config = info["config"]
        expected = stream_config(namespace, storage="file", retention="limits", discard="old")
        assert expected.items() <= config.items()
        assert config["max_msgs_per_subject"] == 7 + 1  # one more than readers are given
        assert config["max_age"] == 90 * 10**9
        assert config["num_replicas"] == 1

    async def test_several_may_make_it_at_once(self, settings):
        async with contextlib.AsyncExitStack() as stack:
            drivers = [NatsDriver(settings) for _ in range(5)]
            for driver in drivers:
                stack.push_async_callback(driver.aclose)
            await asyncio.gather(*(driver.open() for driver in drivers))
            published = [
                await driver.publish(f"{settings.namespace}.event.a", b"x") for driver in drivers
            ]
        assert [p.position.offset for p in published] == [1, 2, 3, 4, 5]
        assert len({p.position.epoch for p in published}) == 1

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({"republish": None}, 'republish is null, not {"src":'),
            ({"allow_direct": False}, "allow_direct is null, not true"),
            ({"retention": "workqueue"}, 'retention is "workqueue", not "limits"'),
            ({"discard": "new"}, 'discard is "new", not "old"'),
            ({"no_ack": True}, "no_ack is true, not null"),
        ],
    )
    async def test_stream_that_cannot_work_is_an_error_and_not_altered(
        self, settings, raw, namespace, changes, expected
    ):
        config = stream_config(namespace, **changes)
        made = await api(raw, "CREATE", config["name"], config)
        with pytest.raises(StreamMismatch) as caught:
            await NatsDriver(settings).open()
        assert expected in str(caught.value)
        assert config["name"] in str(caught.value)
        assert (await api(raw, "INFO", config["name"]))["config"] == made["config"]

    async def test_every_difference_is_listed(self, settings, raw, namespace):
        config = stream_config(namespace, republish=None, allow_direct=False)
        config["subjects"] = [f"{namespace}.event.a", f"{namespace}.event.b"]
        await api(raw, "CREATE", config["name"], config)
        with pytest.raises(StreamMismatch) as caught:
            await NatsDriver(settings).open()
        for name in ("subjects is", "republish is", "allow_direct is"):
            assert name in str(caught.value)

    async def test_other_limits_are_logged_and_not_altered(self, settings, raw, namespace, caplog):
        config = stream_config(namespace, max_msgs_per_subject=3, storage="memory")
        made = await api(raw, "CREATE", config["name"], config)
        async with opened(settings) as driver:
            assert await driver.publish(f"{namespace}.event.a", b"x") is not None
        assert "max_msgs_per_subject is 3, not 101" in caplog.text
        assert 'storage is "memory", not "file"' in caplog.text
        assert "max_bytes" not in caplog.text
        assert (await api(raw, "INFO", config["name"]))["config"] == made["config"]

    async def test_stream_as_it_should_be_is_not_complained_of(self, settings, caplog):
        for _ in range(2):
            async with opened(settings):
                pass
        assert "other limits" not in caplog.text

    async def test_subjects_taken_by_another_stream_are_an_error(self, settings, raw, namespace):
        config = stream_config(namespace, name=f"{namespace}_other", republish=None)
        await api(raw, "CREATE", config["name"], config)
        with pytest.raises(StreamMismatch, match="another stream captures these subjects"):
            await NatsDriver(settings).open()

    async def test_more_bytes_than_the_server_has_are_an_error_naming_the_variable(self, settings):
        with pytest.raises(StreamMismatch, match="BROADCAST_HISTORY_BYTES"):
            await NatsDriver(replace(settings, history_bytes=2**60)).open()

    async def test_stream_lost_with_the_servers_data_is_made_again(self, tmp_path):
        inbox = Inbox()
        async with NatsServer() as server:
            settings = Settings(nats_url=server.url, history_bytes=BYTES)
            async with opened(settings) as driver:
                subscription = await driver.subscribe("eb.live.a", inbox)
                epoch = subscription.position.epoch
                await driver.publish("eb.event.a", b"old")
                await inbox.until(1)
                await restart(server)
                published = await driver.publish("eb.event.a", b"new")
                assert published.position.offset == 1
                assert published.position.epoch != epoch
                await inbox.until(2)
                assert inbox.deliveries[1].position == published.position


class TestPublishing:
    @pytest.mark.parametrize("root", ["event", "live"])
    @pytest.mark.parametrize("headers", [{}, {"Eb-Big": "x" * 1000}])
    async def test_message_above_the_servers_limit_is_refused_and_the_connection_stays(
        self, driver, namespace, root, headers
    ):
        client = driver._connection.client
        size = client.max_payload - (500 if headers else -1)
        with pytest.raises(EncodingError, match=f"max_payload is {client.max_payload}"):
            await driver.publish(f"{namespace}.{root}.a", b"x" * size, headers)
        assert await driver.publish(f"{namespace}.event.a", b"x") is not None
        assert set(driver.counters.values()) == {0}

    async def test_largest_message_that_the_server_takes_is_taken(self, driver, namespace):
        headers = {"Nats-Msg-Id": "1234"}
        room = driver._connection.client.max_payload - 14 - len("Nats-Msg-Id: 1234\r\n") + 1
        for size in range(room - 4, room):
            headers["Nats-Msg-Id"] = str(1000 + size % 9000)
            with contextlib.suppress(EncodingError):
                await driver.publish(f"{namespace}.event.a", b"x" * size, headers)
        assert driver.counters["rebuilds"] == 0
        assert driver.counters["errors"] == 0

    @pytest.mark.parametrize("root", ["event", "live"])
    async def test_header_name_that_nats_does_not_take_is_an_encoding_error(
        self, driver, namespace, root
    ):
        with pytest.raises(EncodingError, match="header"):
            await driver.publish(f"{namespace}.{root}.a", b"x", {"a b": "x"})

    async def test_message_above_the_streams_limit_is_an_encoding_error_at_once(
        self, settings, raw, namespace
    ):
        config = stream_config(namespace, max_msg_size=100)
        await api(raw, "CREATE", config["name"], config)
        async with opened(settings) as driver:
            with pytest.raises(EncodingError, match="larger than the stream accepts"):
                await driver.publish(f"{namespace}.event.a", b"x" * 1000)
            assert driver.counters["publish_retries"] == 0

    async def test_forbidden_subject_is_an_error_at_once_naming_it(self):
        user = {"user": "me", "password": "x", "permissions": {"publish": {"deny": "eb.event.No"}}}
        async with NatsServer(config={"authorization": {"users": [user]}}) as server:
            url = server.url.replace("://", "://me:x@")
            settings = Settings(nats_url=url, history_bytes=BYTES, publish_timeout=60)
            async with opened(settings) as driver:
                started = time.monotonic()
                with pytest.raises(
                    PublishFailed, match=r"no permission to publish to eb\.event\.No"
                ):
                    await driver.publish("eb.event.No", b"x")
                assert time.monotonic() - started < 30  # of a timeout of 60 s
                assert await driver.publish("eb.event.yes", b"x") is not None

    async def test_forbidden_subscription_is_an_error_naming_it(self):
        user = {"user": "me", "password": "x", "permissions": {"subscribe": {"deny": "eb.*.no"}}}
        async with NatsServer(config={"authorization": {"users": [user]}}) as server:
            url = server.url.replace("://", "://me:x@")
            async with opened(Settings(nats_url=url, history_bytes=BYTES)) as driver:
                for subject in ("eb.live.no", "eb.control.no"):
                    with pytest.raises(
                        ConnectionFailed, match=f"no permission to subscribe to {subject}"
                    ):
                        await driver.subscribe(subject, Inbox())
                await driver.subscribe("eb.live.yes", Inbox())

    async def test_acknowledged_messages_survive_a_killed_server_once_each(
        self, own_nats_server, own_settings
    ):
        inbox = Inbox()
        async with opened(replace(own_settings, history_messages=10_000)) as driver:
            await driver.subscribe("own.live.>", Inbox())
            done: list[int] = []

            async def publish(number):
                published = await driver.publish("own.event.a", str(number).encode())
                done.append(published.position.offset)

            publishing = asyncio.gather(*(publish(number) for number in range(3000)))
            await until(lambda: len(done) > 300)
            await restart(own_nats_server)
            await publishing
            assert driver.counters["publish_retries"] > 0
            assert sorted(done) == list(range(1, 3001)), "none lost, none stored twice"
            await driver.subscribe("own.live.a", inbox)
            await driver.publish("own.event.a", b"last")
            assert (await inbox.until(1))[0].position.offset == 3001

    async def test_publishing_without_a_server_ends_in_time(self, own_nats_server, own_settings):
        async with opened(replace(own_settings, publish_timeout=0.5)) as driver:
            os.kill(own_nats_server.pid, signal.SIGKILL)
            started = time.monotonic()
            results = await asyncio.gather(
                *(driver.publish("own.event.a", b"x") for _ in range(10)), return_exceptions=True
            )
            assert time.monotonic() - started < 10
            assert {type(result) for result in results} == {PublishFailed}
            assert own_nats_server.url in str(results[0])
            assert len(driver._connection.replies) == 0
            await own_nats_server.stop()

    async def test_window_bounds_what_is_in_flight(self, settings, namespace, monkeypatch):
        monkeypatch.setattr(nats_publish, "WINDOW", 4)
        async with opened(settings) as driver:
            highest = 0
            publishing = asyncio.gather(
                *(driver.publish(f"{namespace}.event.a", b"x") for _ in range(200))
            )
            while not publishing.done():
                highest = max(highest, len(driver._connection.replies))
                await asyncio.sleep(0)
            await publishing
            assert 0 < highest <= 4

    async def test_publishers_that_wait_for_the_window_come_in_order_unless_they_gave_up(
        self, settings, namespace, monkeypatch
    ):
        monkeypatch.setattr(nats_publish, "WINDOW", 2)
        async with opened(settings) as driver:
            subject, done = f"{namespace}.event.a", []

            async def publish(number):
                await driver.publish(subject, b"x")
                done.append(number)

            tasks = [asyncio.create_task(publish(number)) for number in range(8)]
            await asyncio.sleep(0)  # two are sent, six wait
            assert len(driver._connection.replies) == 2
            for number in (2, 5):
                tasks[number].cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert done == [0, 1, 3, 4, 6, 7]
            assert driver._publisher._in_flight == 0

    async def test_publisher_whose_turn_comes_as_it_is_cancelled_passes_it_on(
        self, settings, namespace, monkeypatch
    ):
        monkeypatch.setattr(nats_publish, "WINDOW", 1)
        async with opened(settings) as driver:
            subject = f"{namespace}.event.a"
            tasks = [asyncio.create_task(driver.publish(subject, b"x")) for _ in range(3)]
            await asyncio.sleep(0)
            tasks[0].add_done_callback(lambda _: tasks[1].cancel())
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(result).__name__ for result in results] == [
                "Published", "CancelledError", "Published",
            ]  # fmt: skip
            assert driver._publisher._in_flight == 0

    async def test_cancelled_publish_releases_its_slot(self, driver, namespace):
        subject = f"{namespace}.event.a"
        publishing = [asyncio.create_task(driver.publish(subject, b"x")) for _ in range(20)]
        await asyncio.sleep(0)  # each is sent; no answer can have been read yet
        assert len(driver._connection.replies) == 20
        for task in publishing:
            task.cancel()
        results = await asyncio.gather(*publishing, return_exceptions=True)
        assert {type(result) for result in results} == {asyncio.CancelledError}
        assert len(driver._connection.replies) == 0
        assert driver._publisher._in_flight == 0
        assert await driver.publish(subject, b"x") is not None

    async def test_internal_messages_during_an_outage_are_kept_up_to_a_bound_then_refused(
        self, own_nats_server, own_settings
    ):
        inbox = Inbox()
        async with opened(own_settings) as driver:
            await driver.subscribe("own.control.a", inbox)
            os.kill(own_nats_server.pid, signal.SIGKILL)
            await until(lambda: not driver.is_connected)
            sent = 0

            async def publish():
                nonlocal sent
                for sent in range(10_000):
                    await driver.publish("own.control.a", str(sent).encode().ljust(1000))

            with pytest.raises(PublishFailed, match=r"outbound buffer limit"):
                await publish()
            assert 50 < sent < 1000
            await own_nats_server.stop()
            await own_nats_server.start()
            await inbox.until(sent)
            assert [int(payload) for payload in inbox.payloads] == list(range(sent))

    async def test_close_lets_publishes_in_flight_finish(self, settings, namespace):
        driver = NatsDriver(settings)
        await driver.open()
        publishing = asyncio.gather(
            *(driver.publish(f"{namespace}.event.a", b"x") for _ in range(500))
        )
        await asyncio.sleep(0)
        await driver.aclose()
        assert len({p.position.offset for p in await publishing}) == 500

    async def test_close_sends_volatile_messages_that_were_published_before(
        self, settings, namespace
    ):
        inbox = Inbox()
        async with opened(settings) as listener:
            await listener.subscribe(f"{namespace}.live.a", inbox)
            async with opened(settings) as driver:
                for _ in range(500):
                    await driver.publish(f"{namespace}.live.a", b"x")
            await inbox.until(500)

    async def test_close_is_bounded_when_the_server_is_gone(
        self, own_nats_server, own_settings, monkeypatch
    ):
        monkeypatch.setattr("eventbus.drivers.nats.driver.DRAIN_S", 0.2)
        driver = NatsDriver(replace(own_settings, publish_timeout=60))
        await driver.open()
        os.kill(own_nats_server.pid, signal.SIGKILL)
        publishing = asyncio.create_task(driver.publish("own.event.a", b"x"))
        await until(lambda: not driver.is_connected)
        async with asyncio.timeout(30):
            await driver.aclose()
            with pytest.raises(PublishFailed):
                await publishing
        await own_nats_server.stop()


class TestLosingTheConnection:
    async def deliver(self, driver, inbox):
        """Publish until a message is received: those in between may be stored and not seen."""
        before = len(inbox.deliveries)
        while len(inbox.deliveries) == before:
            await driver.publish("own.event.a", b"now")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(inbox.until(before + 1), 0.2)

    async def test_subscriptions_come_back_with_the_server(self, own_nats_server, own_settings):
        async with opened(own_settings) as driver:
            exact, control = Inbox(), Inbox()
            await driver.subscribe("own.live.a", exact)
            await driver.subscribe("own.control.*", control)
            first = await driver.publish("own.event.a", b"first")
            await restart(own_nats_server)
            await self.deliver(driver, exact)
            await driver.publish("own.control.x", b"x")
            await control.until(1)
            last = exact.deliveries[-1]
            assert last.position == (first.position.offset + 1, first.position.epoch)
            assert last.previous == first.position.offset

    async def test_messages_stored_while_away_are_delivered_before_later_ones(
        self, own_settings, monkeypatch
    ):
        monkeypatch.setattr(RECONNECT, Backoff(0.5, 0.5, jitter=0))
        async with opened(own_settings) as away, opened(own_settings) as there:
            inbox, quiet = Inbox(), Inbox()
            await away.subscribe("own.live.a", inbox)
            await away.subscribe("own.live.quiet", quiet)
            await there.publish("own.event.a", b"1")
            await inbox.until(1)
            await away._connection.client.force_reconnect()
            await until(lambda: not away.is_connected)
            await there.publish("own.event.a", b"2")
            await there.publish("own.event.quiet", b"only")
            assert not away.is_connected
            await until(lambda: away.is_connected)
            await there.publish("own.event.a", b"3")
            await inbox.until(3)
            await quiet.until(1)
            assert inbox.payloads == [b"1", b"2", b"3"]
            offsets = [d.position.offset for d in inbox.deliveries]
            assert [d.previous for d in inbox.deliveries[1:]] == offsets[:-1]
            assert quiet.payloads == [b"only"]
            assert away.counters["filled"] >= 2
            assert away.counters["gaps"] == 0

    async def test_messages_missed_and_evicted_show_as_a_gap(self, own_settings, monkeypatch):
        monkeypatch.setattr(RECONNECT, Backoff(0.5, 0.5, jitter=0))
        few = msgspec.structs.replace(own_settings, history_messages=3)
        async with opened(few) as away, opened(few) as there:
            inbox = Inbox()
            await away.subscribe("own.live.a", inbox)
            first = await there.publish("own.event.a", b"0")
            await inbox.until(1)
            await away._connection.client.force_reconnect()
            await until(lambda: not away.is_connected)
            for number in range(1, 7):
                await there.publish("own.event.a", b"%d" % number)
            await inbox.until(4)
            assert inbox.payloads == [b"0", b"4", b"5", b"6"]
            assert inbox.deliveries[1].previous > first.position.offset
            assert away.counters["gaps"] == 1

    async def test_message_that_never_came_is_read_before_the_next_is_delivered(
        self, driver, namespace
    ):
        inbox = Inbox()
        subscription = await driver.subscribe(f"{namespace}.live.a", inbox)
        await driver.publish(f"{namespace}.event.a", b"1")
        await inbox.until(1)
        client = driver._connection.client
        lost = []
        [listener] = [
            each for each in client._subs.values() if each._subject == f"{namespace}.live.a"
        ]
        listener.receiver = lambda *message: lost.append(message)
        await driver.publish(f"{namespace}.event.a", b"2")
        await until(lambda: lost)
        listener.receiver = subscription.receive
        await driver.publish(f"{namespace}.event.a", b"3")
        await inbox.until(3)
        assert inbox.payloads == [b"1", b"2", b"3"]
        assert driver.counters["filled"] >= 1

    async def test_member_of_a_group_does_not_read_what_went_to_others(self, driver, namespace):
        inboxes = [Inbox(), Inbox()]
        for inbox in inboxes:
            await driver.subscribe_group(f"{namespace}.live.a", "workers", inbox)
        for _ in range(50):
            await driver.publish(f"{namespace}.event.a", b"x")
        await until(lambda: sum(len(inbox.deliveries) for inbox in inboxes) == 50)
        assert all(inbox.deliveries for inbox in inboxes)
        assert driver.counters["filled"] == 0

    async def test_connection_lost_again_and_again_at_speed_leaves_no_gap_and_no_duplicate(
        self, own_settings
    ):
        many = msgspec.structs.replace(own_settings, history_messages=5000)
        async with opened(many) as away, opened(many) as there:
            inbox = Inbox()
            await away.subscribe("own.live.a", inbox)
            total = 2000

            async def publish():
                for number in range(total):
                    await there.publish("own.event.a", b"%d" % number)

            publishing = asyncio.create_task(publish())
            for _ in range(6):
                seen = len(inbox.deliveries)
                await inbox.until(min(seen + 50, total))
                await away._connection.client.force_reconnect()
            await publishing
            await inbox.until(total)
            assert inbox.payloads == [b"%d" % number for number in range(total)]
            assert away.counters["gaps"] == 0

    async def test_stopped_read_loop_is_noticed_and_replaced(self, own_settings):
        async with opened(own_settings) as driver:
            inbox = Inbox()
            await driver.subscribe("own.live.a", inbox)
            driver._connection.client._reading_task.cancel()
            async with asyncio.timeout(15):
                await self.deliver(driver, inbox)

    async def test_client_closed_for_good_is_rebuilt_with_its_subscriptions(self, own_settings):
        async with opened(own_settings) as driver:
            inbox = Inbox()
            await driver.subscribe("own.live.a", inbox)
            client = driver._connection.client
            await client.close()
            await until(lambda: driver.counters["rebuilds"] > 0)
            assert driver._connection.client is not client
            await self.deliver(driver, inbox)

    async def test_lame_duck_is_left_before_it_stops(self, own_nats_server, own_settings):
        async with opened(own_settings) as driver:
            inbox = Inbox()
            await driver.subscribe("own.live.a", inbox)
            losses = driver._subscriptions.losses
            os.kill(own_nats_server.pid, signal.SIGUSR2)
            await until(lambda: driver._subscriptions.losses > losses)
            assert own_nats_server.is_running, "lame duck mode lasts longer"
            await restart(own_nats_server)
            await self.deliver(driver, inbox)

    async def test_hung_server_is_noticed_by_unanswered_pings(
        self, own_nats_server, own_settings, monkeypatch
    ):
        monkeypatch.setattr("eventbus.drivers.nats.connection.connection.PING_S", 0.05)
        async with opened(own_settings) as driver:
            os.kill(own_nats_server.pid, signal.SIGSTOP)
            await until(lambda: not driver.is_connected)
            os.kill(own_nats_server.pid, signal.SIGCONT)
            await until(lambda: driver.is_connected)

    async def test_subscribing_during_an_outage_waits_for_the_server(
        self, own_nats_server, own_settings
    ):
        async with opened(own_settings) as driver:
            inbox = Inbox()
            os.kill(own_nats_server.pid, signal.SIGKILL)
            await until(lambda: not driver.is_connected)
            subscribing = asyncio.gather(
                driver.subscribe("own.live.a", inbox), driver.subscribe("own.control.a", inbox)
            )
            await own_nats_server.stop()
            await own_nats_server.start()
            live, control = await subscribing
            assert live.position.offset == 0
            assert control.position is None
            await self.deliver(driver, inbox)

    async def test_subscribing_without_a_server_fails_in_time_and_leaves_nothing(
        self, own_nats_server, own_settings
    ):
        async with opened(replace(own_settings, connect_timeout=0.3)) as driver:
            os.kill(own_nats_server.pid, signal.SIGKILL)
            await until(lambda: not driver.is_connected)
            before = len(driver._connection.subscriptions)
            for subject in ("own.live.a", "own.control.a"):
                with pytest.raises(ConnectionFailed):
                    await driver.subscribe(subject, Inbox())
            assert len(driver._connection.subscriptions) == before
            await own_nats_server.stop()

    async def test_errors_are_logged_and_counted(self, own_nats_server, own_settings, caplog):
        async with opened(own_settings) as driver:
            os.kill(own_nats_server.pid, signal.SIGKILL)
            await until(lambda: driver.counters["errors"] > 1)
            await own_nats_server.stop()
        assert f"NATS at {own_nats_server.url}" in caplog.text
        assert "is lost" in caplog.text


class TestStreamMadeAnew:
    async def test_it_is_noticed_when_offsets_go_back(self, driver, raw, namespace):
        inbox = Inbox()
        subscription = await driver.subscribe(f"{namespace}.live.a", inbox)
        epoch = subscription.position.epoch
        for _ in range(5):
            await driver.publish(f"{namespace}.event.a", b"old")
        await recreate(raw, namespace)
        published = [await driver.publish(f"{namespace}.event.a", b"new") for _ in range(3)]
        await inbox.until(8)
        assert [d.position.epoch == epoch for d in inbox.deliveries] == [True] * 5 + [False] * 3
        assert [d.position for d in inbox.deliveries[5:]] == [p.position for p in published]
        assert inbox.offsets[5:] == [1, 2, 3]

    async def test_it_is_noticed_by_an_idle_subscription_too(self, driver, raw, namespace):
        one, two = Inbox(), Inbox()
        await driver.publish(f"{namespace}.event.a", b"old")
        await driver.subscribe(f"{namespace}.live.a", one)
        await driver.subscribe(f"{namespace}.live.>", two)
        await recreate(raw, namespace)
        published = await driver.publish(f"{namespace}.event.a", b"new")
        for inbox in (one, two):
            await inbox.until(1)
            assert inbox.deliveries[0].position == published.position

    async def test_it_is_noticed_when_the_new_one_has_grown_past_the_old(
        self, driver, raw, namespace
    ):
        inbox = Inbox()
        await driver.subscribe(f"{namespace}.live.a", inbox)
        old = await driver.publish(f"{namespace}.event.a", b"old")
        await inbox.until(1)
        await recreate(raw, namespace)
        js = raw.jetstream()
        for _ in range(5):
            await js.publish(f"{namespace}.event.other", b"x")
        await js.publish(f"{namespace}.event.a", b"new")
        await inbox.until(2)
        last = inbox.deliveries[1].position
        assert last.offset == 6
        assert last.epoch != old.position.epoch

    async def test_messages_arriving_after_a_reconnect_carry_the_new_epoch(
        self, own_nats_server, own_settings
    ):
        async with opened(own_settings) as driver:
            inbox = Inbox()
            await driver.subscribe("own.live.>", inbox)
            old = await driver.publish("own.event.a", b"old")
            await inbox.until(1)
            release = asyncio.Event()
            state = driver._stream.stream._info

            async def delayed(*args):
                await release.wait()
                return await state(*args)

            driver._stream.stream._info = delayed
            await driver._connection.client.force_reconnect()
            await until(lambda: not driver._subscriptions.is_verified)
            nc = await nats.connect(own_nats_server.url)
            await recreate(nc, "own")
            await until(lambda: driver.is_connected)
            js = nc.jetstream()
            for _ in range(5):
                await js.publish("own.event.b", b"new")
            subscription = next(iter(driver._subscriptions._all))
            await until(lambda: len(subscription._pending or ()) == 5)
            assert inbox.payloads == [b"old"], "held until the stream's identity is known"
            release.set()
            await inbox.until(6)
            assert inbox.offsets[1:] == [1, 2, 3, 4, 5]
            assert old.position.epoch not in {d.position.epoch for d in inbox.deliveries[1:]}
            await nc.close()

    async def test_expired_messages_are_not_taken_for_a_new_stream(self, driver, raw, namespace):
        inbox = Inbox()
        await driver.subscribe(f"{namespace}.live.a", inbox)
        first = await driver.publish(f"{namespace}.event.a", b"1")
        await api(raw, "PURGE", f"{namespace.upper()}_EVENTS")
        await driver.publish(f"{namespace}.event.a", b"2")
        await inbox.until(2)
        assert inbox.deliveries[1].previous == 0
        assert inbox.deliveries[1].position == (2, first.position.epoch)


class TestForgedHeaders:
    async def test_publishers_own_headers_do_not_pass_for_the_streams(self, driver, namespace):
        inbox = Inbox()
        await driver.subscribe(f"{namespace}.live.a", inbox)
        forged = {
            "Nats-Stream": f"{namespace.upper()}_EVENTS",
            "Nats-Sequence": "99",
            "Nats-Last-Sequence": "98",
        }
        one = await driver.publish(f"{namespace}.event.a", b"1", forged)
        two = await driver.publish(f"{namespace}.event.a", b"2")
        await inbox.until(2)
        assert [d.position for d in inbox.deliveries] == [one.position, two.position]
        assert inbox.deliveries[0].previous == 0

    async def test_message_of_another_stream_has_no_position(self, driver, namespace):
        inbox = Inbox()
        await driver.subscribe(f"{namespace}.live.a", inbox)
        headers = {"Nats-Stream": "OTHER", "Nats-Sequence": "99", "Nats-Last-Sequence": "98"}
        await driver.publish(f"{namespace}.live.a", b"x", headers)
        assert (await inbox.until(1))[0].position is None

    @pytest.mark.parametrize("number", ["", "x", "-", "1e3", "٣"])
    async def test_sequence_that_is_not_a_number_makes_no_position(self, driver, namespace, number):
        inbox = Inbox()
        await driver.subscribe(f"{namespace}.live.a", inbox)
        headers = {
            "Nats-Stream": f"{namespace.upper()}_EVENTS",
            "Nats-Sequence": number,
            "Nats-Last-Sequence": "0",
        }
        await driver.publish(f"{namespace}.live.a", b"x", headers)
        assert (await inbox.until(1))[0].position is None

    async def test_offset_that_the_stream_does_not_have_blocks_no_later_message(
        self, driver, namespace, caplog
    ):
        inbox = Inbox()
        await driver.subscribe(f"{namespace}.live.a", inbox)
        headers = {
            "Nats-Stream": f"{namespace.upper()}_EVENTS",
            "Nats-Sequence": "1000000",
            "Nats-Last-Sequence": "0",
        }
        await driver.publish(f"{namespace}.live.a", b"forged", headers)
        sent = [await driver.publish(f"{namespace}.event.a", b"x") for _ in range(3)]
        await inbox.until(4)
        assert [d.position for d in inbox.deliveries[1:]] == [p.position for p in sent]
        assert "does not have" in caplog.text


async def test_copy_of_a_stored_message_is_delivered_once(driver, raw, namespace):
    inbox = Inbox()
    await driver.subscribe(f"{namespace}.live.a", inbox)
    await driver.publish(f"{namespace}.event.a", b"1")
    await driver.publish(f"{namespace}.event.a", b"2")
    await inbox.until(2)
    for offset in ("1", "2"):
        headers = {
            "Nats-Stream": f"{namespace.upper()}_EVENTS",
            "Nats-Sequence": offset,
            "Nats-Last-Sequence": "0",
        }
        await raw.publish(f"{namespace}.live.a", b"copy", headers=headers)
    await raw.flush()
    await driver.publish(f"{namespace}.event.a", b"3")
    await inbox.until(3)
    assert inbox.payloads == [b"1", b"2", b"3"]


async def test_plain_publish_of_any_nats_client_is_delivered_with_its_offset(
    driver, raw, namespace
):
    inbox = Inbox()
    await driver.subscribe(f"{namespace}.live.general", inbox)
    await raw.publish(f"{namespace}.event.general", b'{"hello":1}')
    [delivery] = await inbox.until(1)
    assert delivery.payload == b'{"hello":1}'
    assert delivery.position.offset == 1


async def test_many_subscriptions_at_once_ask_the_stream_a_few_times_only(
    driver, namespace, monkeypatch
):
    asked = 0
    request = driver._connection.request

    async def counted(*args):
        nonlocal asked
        asked += 1
        return await request(*args)

    monkeypatch.setattr(driver._connection, "request", counted)
    await asyncio.gather(
        *(driver.subscribe(f"{namespace}.live.c{i}", Inbox()) for i in range(2000))
    )
    assert 1 <= asked <= 5


async def test_secrets_of_the_url_are_never_logged(caplog):
    caplog.set_level(logging.DEBUG)
    config = {"authorization": {"user": "me", "password": "hidden"}}
    async with NatsServer(config=config) as server:
        url = server.url.replace("://", "://me:hidden@")
        async with opened(Settings(nats_url=url, history_bytes=BYTES)) as driver:
            os.kill(server.pid, signal.SIGKILL)
            await until(lambda: driver.counters["errors"] > 1)
            await server.stop()
    assert "is lost" in caplog.text
    assert "hidden" not in caplog.text


class TestReading:
    async def test_history_larger_than_one_answer_of_the_server_is_read_whole(self, own_settings):
        """A direct get returns at most 64 MiB at once, however many messages are requested."""
        large = replace(own_settings, history_bytes=256 * 1024**2)
        async with opened(large) as driver:
            payload = b"x" * 900_000
            given = [await driver.publish("own.event.a", payload) for _ in range(80)]
            offsets = [one.position.offset for one in given]
            page = await driver.read("own.live.a", after=offsets[0], limit=500)
            assert [one.position.offset for one in page.messages] == offsets[1:]
            assert page.complete
            last = await driver.read("own.live.a", after=None, limit=78)
            assert [one.position.offset for one in last.messages] == offsets[2:]

    async def test_more_than_one_batch_is_read_in_order(self, settings, namespace):
        async with opened(replace(settings, history_messages=2000)) as driver:
            await asyncio.gather(
                *(driver.publish(f"{namespace}.event.a", str(i).encode()) for i in range(1200))
            )
            live = f"{namespace}.live.a"
            for page in (
                await driver.read(live, after=None, limit=5000),
                await driver.read(live, after=0, limit=5000),
            ):
                assert [d.position.offset for d in page.messages] == list(range(1, 1201))
                assert page.complete
            last = await driver.read(live, after=None, limit=700)
            assert [d.position.offset for d in last.messages] == list(range(501, 1201))

    async def test_idle_channel_whose_messages_expired_is_not_complete(
        self, driver, raw, namespace
    ):
        first = await driver.publish(f"{namespace}.event.a", b"x")
        await driver.publish(f"{namespace}.event.b", b"x")
        await api(raw, "PURGE", f"{namespace.upper()}_EVENTS")
        page = await driver.read(f"{namespace}.live.a", after=first.position.offset - 1, limit=10)
        assert page.messages == ()
        assert not page.complete

    async def test_reading_a_subject_of_another_root_is_an_error(self, driver, namespace):
        for subject in (f"{namespace}.event.a", "other.live.a", f"{namespace}.live.>"):
            with pytest.raises(InvalidChannel):
                await driver.read(subject, after=None, limit=1)

    async def test_reading_without_a_server_is_an_error_in_time(
        self, own_nats_server, own_settings
    ):
        async with opened(replace(own_settings, connect_timeout=0.3)) as driver:
            os.kill(own_nats_server.pid, signal.SIGKILL)
            await until(lambda: not driver.is_connected)
            with pytest.raises(ConnectionFailed):
                await driver.read("own.live.a", after=None, limit=1)
            await own_nats_server.stop()


async def test_fault_that_continues_is_not_logged_at_every_try(caplog):
    settings = Settings(nats_url="nats://127.0.0.1:1", connect_timeout=1.5)
    with pytest.raises(ConnectionFailed, match="failed"):
        await NatsDriver(settings).open()
    lines = [record for record in caplog.records if "call failed" in record.getMessage()]
    assert len(lines) == 1


async def test_buses_of_one_folder_share_its_server_in_development(tmp_path):
    settings = Settings(nats_data=str(tmp_path), nats_port=0, history_bytes=BYTES)
    first, second = NatsDriver(settings), NatsDriver(settings)
    await first.open()
    await second.open()
    assert first.server is not None
    assert second.server is None
    await first.publish("eb.event.a", b"1")
    page = await second.read("eb.live.a", after=0, limit=10)
    assert [message.payload for message in page.messages] == [b"1"]
    await second.aclose()
    assert first.is_connected
    await first.aclose()
