"""Where webhooks may be posted to, whatever host names resolve to."""

import socket

import pytest
from aiohttp import web

from eventbus.errors import ConfigError
from eventbus.messages import new_id, utc_now
from eventbus.webhooks import WebhookEvent
from eventbus_edge.config import EdgeSettings
from eventbus_edge.lifecycle.networks import Networks
from eventbus_edge.lifecycle.receivers import NativeReceiver
from eventbus_edge.lifecycle.webhooks import Poster, PostFailed
from eventbus_edge.metrics import Metrics

METADATA = "169.254.169.254"
"""The address where clouds hand out a machine's credentials."""
IN_OTHER_FORMS = [
    f"::ffff:{METADATA}", "::ffff:a9fe:a9fe", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1",
    "2001:0:4136:e378:8000:63bf:5601:5601", "fe80::1", "fe80::1%1",
]  # fmt: skip
"""That address mapped to IPv6 (RFC 4291), through NAT64, 6to4 and Teredo; and link-local IPv6."""
PRIVATE = ["127.0.0.1", "::1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "fd00::1"]
PUBLIC = ["93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946", "::ffff:93.184.216.34"]


@pytest.mark.parametrize("address", [METADATA, *IN_OTHER_FORMS, "0.0.0.0", "::", "224.0.0.1"])
def test_addresses_that_no_receiver_has_are_refused_without_any_setting(address):
    assert not Networks().allows(address)
    assert not Networks(["public"]).allows(address)
    assert not Networks(["10.0.0.0/8", "93.184.216.0/24"]).allows(address)


@pytest.mark.parametrize("address", [*PRIVATE, *PUBLIC])
def test_other_addresses_are_allowed_without_any_setting(address):
    assert Networks().allows(address)


def test_public_means_neither_private_nor_shared_nor_loopback():
    networks = Networks(["public"])
    assert [address for address in PRIVATE if networks.allows(address)] == []
    assert [address for address in PUBLIC if not networks.allows(address)] == []
    assert not networks.allows("::ffff:10.1.2.3")
    assert not networks.allows("64:ff9b::10.1.2.3")


def test_named_networks_are_the_only_ones_unless_public_is_beside_them():
    networks = Networks(["10.20.0.0/16", "fd12::/32", "169.254.169.254"])
    for address in ("10.20.1.1", "::ffff:10.20.1.1", "fd12::7", METADATA):
        assert networks.allows(address)
    for address in ("10.21.1.1", "93.184.216.34", "fd13::7", "127.0.0.1"):
        assert not networks.allows(address)
    both = Networks(["public", "10.20.0.0/16"])
    assert both.allows("93.184.216.34")
    assert both.allows("10.20.1.1")
    assert not both.allows("10.21.1.1")


@pytest.mark.parametrize("entry", ["10.0.0.1/8", "example.com", "private", "10.0.0.0/33", ""])
def test_entry_that_is_not_a_network_is_refused(entry):
    with pytest.raises(ConfigError, match="BROADCAST_WEBHOOK_NETWORKS") as caught:
        Networks([entry])
    assert caught.value.variable == "BROADCAST_WEBHOOK_NETWORKS"


@pytest.fixture
async def hooks():
    """A receiver on this machine without keep-alive: its port, and the requests it got."""
    got = []

    async def handle(request):
        got.append(await request.read())
        response = web.Response(status=204)
        response.force_close()
        return response

    app = web.Application()
    app.router.add_post("/hooks", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner.addresses[0][1], got
    await runner.cleanup()


@pytest.fixture
async def post():
    """Post one event to a URL, with a poster that the first post creates."""
    posters = {}

    async def send(url, *networks):
        settings = EdgeSettings(
            webhook_url=url, webhook_secret="a-secret-of-webhooks", webhook_networks=networks,
            webhook_timeout=30.0,
        )  # fmt: skip
        receiver = NativeReceiver(settings)
        if url not in posters:
            posters[url] = Poster(receiver, settings, Metrics())
        event = WebhookEvent(
            id=new_id(), event="channel_occupied", channel="a", timestamp=utc_now(),
        )  # fmt: skip
        await posters[url].process(receiver.batch([event]))
        return posters[url]

    yield send
    for poster in posters.values():
        await poster.aclose()


async def test_post_to_an_address_that_is_not_allowed_opens_no_connection(hooks, post):
    port, got = hooks
    await post(f"http://127.0.0.1:{port}/hooks")
    assert len(got) == 1
    with pytest.raises(PostFailed, match=r"does not allow 127\.0\.0\.1"):
        await post(f"http://127.0.0.1:{port}/hooks?", "public")
    with pytest.raises(PostFailed, match=rf"does not allow {METADATA}"):
        await post(f"http://{METADATA}/latest/meta-data")
    assert len(got) == 1


async def test_name_whose_answer_changes_is_checked_at_each_connection(hooks, post, monkeypatch):
    """DNS rebinding: the first answer is allowed, the next is the metadata service's address."""
    port, got = hooks
    answers = ["127.0.0.1"]

    def resolve(host, port, *_, **__):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers[-1], port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    url = f"http://receiver.example:{port}/hooks"
    poster = await post(url)
    assert len(got) == 1
    answers.append(METADATA)
    poster._session.connector.clear_dns_cache()
    with pytest.raises(PostFailed, match=rf"does not allow {METADATA}"):
        await post(url)
    assert len(got) == 1


async def test_name_with_a_good_and_a_bad_address_leads_to_the_good_one(hooks, post, monkeypatch):
    port, got = hooks

    def resolve(host, port, *_, **__):
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*kind, (METADATA, port)), (*kind, ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    await post(f"http://receiver.example:{port}/hooks")
    assert len(got) == 1


async def test_node_with_invalid_networks_does_not_start(start_edge, bus):
    with pytest.raises(ConfigError, match="BROADCAST_WEBHOOK_NETWORKS has 'here'"):
        await start_edge(
            bus, webhook_url="http://127.0.0.1:1/", webhook_secret="a-secret-of-webhooks",
            webhook_networks=("here",),
        )  # fmt: skip
