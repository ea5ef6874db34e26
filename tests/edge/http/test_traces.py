"""Spans of a node, and what of a trace must not reach clients."""

import json
import time

import aiohttp
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from eventbus import tracing

SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
TRACE_ID = 0x0AF7651916CD43DD8448EB211C80319C


@pytest.fixture
def spans():
    """The spans that have ended, by their name."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    before = tracing._State.tracing
    tracing.load(provider)
    yield lambda name: [span for span in exporter.get_finished_spans() if span.name == name]
    tracing._State.tracing = before


@pytest.fixture
async def edge(spans, start_edge, bus):
    """A node that was started where traces are kept."""
    return await start_edge(bus)


async def test_delivery_to_many_clients_is_one_span_of_the_publishers_trace(edge, bus, spans):
    clients = [await edge.connect() for _ in range(3)]
    for client in clients:
        await client.subscribe("general")
    before = time.time_ns()
    receipt = await bus.publish("general", "news", {"text": "hello"})
    for client in clients:
        message = await client.next()
        assert message["id"] == receipt.id
        assert "trace" not in json.dumps(message), "what travels in headers stays on the bus"
    [published] = spans("publish")
    [delivered] = spans("deliver")
    assert delivered.kind is SpanKind.CONSUMER
    assert delivered.parent.span_id == published.get_span_context().span_id
    assert delivered.attributes["messaging.destination.name"] == "general"
    assert delivered.attributes["eventbus.clients"] == 3
    assert before <= delivered.start_time <= delivered.end_time


async def test_unsampled_message_and_one_without_a_trace_have_no_span(edge, nats, namespace, spans):
    client = await edge.connect()
    await client.subscribe("general")
    for headers in (None, {"traceparent": UNSAMPLED}, {"traceparent": "no context"}):
        await nats.publish(f"{namespace}.live.general", b"{}", headers=headers)
        await client.next()
    assert spans("deliver") == []
    await nats.publish(f"{namespace}.live.general", b"{}", headers={"traceparent": SAMPLED})
    await client.next()
    [delivered] = spans("deliver")
    assert delivered.get_span_context().trace_id == TRACE_ID


async def test_handshake_is_a_span_that_does_not_contain_the_token(edge, spans, token):
    secret = token()
    await edge.connect(f"/ws/user.7?auth_token={secret}", headers={"traceparent": SAMPLED})
    [span] = spans("GET /ws/{channel}")
    assert span.kind is SpanKind.SERVER
    assert span.get_span_context().trace_id == TRACE_ID
    assert secret not in span.to_json()
    assert "user.7" not in span.to_json()


async def test_refused_handshake_has_its_status_and_is_not_an_error_of_the_node(edge, spans):
    assert (await edge.refusal("/ws/user.7"))[0] == 401
    [span] = spans("GET /ws/{channel}")
    assert span.attributes["http.response.status_code"] == 401
    assert span.status.status_code is StatusCode.UNSET


async def test_api_request_is_a_span_and_the_message_it_publishes_belongs_to_it(edge, spans):
    body = {"channel": "general", "event": "news", "data": {}}
    async with aiohttp.ClientSession() as session:
        async with session.post(
            f"{edge.url}/api/broadcast/events", json=body, headers={"traceparent": SAMPLED}
        ) as response:
            assert response.status in {200, 201, 202}, await response.text()
        async with session.get(f"{edge.url}/healthz") as response:
            assert response.status == 200
    [request] = spans("POST /api/broadcast/events")
    [published] = spans("publish")
    assert request.get_span_context().trace_id == TRACE_ID
    assert request.attributes["http.response.status_code"] < 300
    assert published.parent.span_id == request.get_span_context().span_id
    assert spans("GET /healthz") == []


async def test_connection_that_stays_open_has_no_span_that_does(edge, spans):
    client = await edge.connect()
    assert len(spans("GET /ws")) == 1
    assert await client.receives_nothing()
