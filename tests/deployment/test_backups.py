"""Streams are backed up by the user backup, and restored by admin, as `nats stream backup` does it.

The requests are those of NATS' ADR-28, docs/adr: JetStream's snapshots.
"""

import asyncio
import json

import nats
import pytest

from eventbus.bus import EventBus
from eventbus.config import Settings

pytestmark = pytest.mark.xdist_group("deployment")


async def back_up(client, stream):
    """A stream's settings and state, and the pieces of its snapshot."""
    inbox, pieces = client.new_inbox(), []
    arriving = await client.subscribe(inbox)
    question = json.dumps({"deliver_subject": inbox}).encode()
    answer = await client.request(f"$JS.API.STREAM.SNAPSHOT.{stream}", question, timeout=10)
    begun = json.loads(answer.data)
    assert "error" not in begun, begun
    while (piece := await arriving.next_msg(timeout=10)).data:
        pieces.append(piece.data)
        if piece.reply:  # the server waits for it before it sends further
            await client.publish(piece.reply)
    return {"config": begun["config"], "state": begun["state"]}, pieces


async def restore(client, stream, described, pieces):
    question = json.dumps(described).encode()
    answer = await client.request(f"$JS.API.STREAM.RESTORE.{stream}", question, timeout=10)
    begun = json.loads(answer.data)
    assert "error" not in begun, begun
    for piece in (*pieces, b""):
        answer = await client.request(begun["deliver_subject"], piece, timeout=10)
    done = json.loads(answer.data)
    assert "error" not in done, done
    return done


async def test_backup_is_restored_to_another_server_where_clients_start_over(
    deployment, own_nats_server
):
    async with (
        EventBus(deployment.settings("publisher")) as publisher,
        EventBus(deployment.settings("backup")) as backup,
    ):
        subject = publisher.subjects.event("backed.up")
        sent = [await publisher.driver.publish(subject, b"%d" % number) for number in range(3)]
        described, pieces = await back_up(backup.driver._connection.client, "EB_EVENTS")
    assert described["config"]["num_replicas"] == 3
    described["config"]["num_replicas"] = 1  # there is one server

    client = await nats.connect(own_nats_server.url)
    await restore(client, "EB_EVENTS", described, pieces)
    await client.close()
    async with EventBus(Settings(nats_url=own_nats_server.url)) as bus:
        live = bus.subjects.live("backed.up")
        page = await bus.driver.read(live, after=None, limit=10)
        assert [message.payload for message in page.messages] == [b"0", b"1", b"2"]
        assert [message.position.offset for message in page.messages] == [
            receipt.position.offset for receipt in sent
        ]
        # A client that resumes with the old epoch learns that it is another stream.
        assert page.position.epoch != sent[0].position.epoch
        following = await bus.driver.publish(bus.subjects.event("backed.up"), b"3")
        assert following.position.offset > sent[-1].position.offset
        assert following.position.epoch == page.position.epoch


async def test_backup_user_changes_nothing_and_restores_nothing(deployment):
    async with EventBus(deployment.settings("backup")) as backup:
        client = backup.driver._connection.client
        for subject in (
            "$JS.API.STREAM.RESTORE.EB_EVENTS",
            "$JS.API.STREAM.PURGE.EB_EVENTS",
            "$JS.API.STREAM.DELETE.EB_EVENTS",
            "eb.event.general",
        ):
            with pytest.raises(asyncio.TimeoutError):
                await client.request(subject, b"{}", timeout=0.3)
