"""Traces over the real bus, as OpenTelemetry's own exporter sees them."""

import asyncio
import subprocess
import sys

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from eventbus import tracing
from eventbus.bus import EventBus
from eventbus.events import Event, ShouldBroadcast, ShouldQueue
from eventbus.events.listeners import isolated
from eventbus.queue import Worker

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
PATIENCE_S = 30.0


class OrderTraced(Event, ShouldBroadcast, channel="orders.{order_id}"):
    order_id: int


class InvoiceTraced(Event, ShouldQueue, queue="traced", tries=1):
    order_id: int


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def tracer(exporter):
    """Traces of this test alone, by a provider of its own."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    before = tracing._State.tracing
    tracing.load(provider)
    yield provider.get_tracer("tests")
    tracing._State.tracing = before


@pytest.fixture
async def bus(settings):
    with isolated():
        async with EventBus(settings) as opened:
            yield opened


def spans_of(exporter, name):
    return [span for span in exporter.get_finished_spans() if span.name == name]


async def handled_span(exporter):
    """The span of a handler, which ends after the handler."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if found := spans_of(exporter, "process orders.{order_id}"):
                return found[0]
            await asyncio.sleep(0.01)


def span_of(exporter, name):
    [span] = spans_of(exporter, name)
    return span


async def received(bus, subject):
    """What the bus carries on a subject, as deliveries."""
    queue = asyncio.Queue()
    await bus.driver.subscribe(subject, queue.put_nowait)

    async def take():
        async with asyncio.timeout(PATIENCE_S):
            return await queue.get()

    return take


@pytest.mark.parametrize("volatile", [False, True])
async def test_publish_is_a_producers_span_whose_context_is_in_the_headers(
    bus, tracer, exporter, volatile
):
    take = await received(bus, bus.subjects.live("general"))
    with tracer.start_as_current_span("caller") as caller:
        receipt = await bus.publish("general", "news", {}, volatile=volatile)
    span = span_of(exporter, "publish")
    assert span.kind is SpanKind.PRODUCER
    assert span.parent.span_id == caller.get_span_context().span_id
    assert dict(span.attributes) == {
        "messaging.system": "nats",
        "messaging.operation.type": "send",
        "messaging.operation.name": "publish",
        "messaging.destination.name": "general",
        "messaging.message.id": receipt.id,
    }
    context = span.get_span_context()
    traceparent = (await take()).headers.get("traceparent")
    start, flags = traceparent[:-2], int(traceparent[-2:], 16)
    assert start == f"00-{context.trace_id:032x}-{context.span_id:016x}-"
    assert flags & 0x01, "sampled (W3C Trace Context, 3.2.2.5)"


async def test_publishers_own_context_is_not_changed(bus, tracer, exporter):
    take = await received(bus, bus.subjects.live("general"))
    await bus.publish("general", "news", {}, headers={"traceparent": TRACEPARENT})
    assert (await take()).headers.get("traceparent") == TRACEPARENT


@pytest.mark.parametrize("options", [{}, {"durable": True, "group": "billing"}])
async def test_subscriptions_handler_runs_in_the_publishers_trace(bus, tracer, exporter, options):
    done = asyncio.get_running_loop().create_future()

    def handle(event: OrderTraced) -> None:
        done.set_result(trace.get_current_span().get_span_context())

    bus.subscribe(OrderTraced, **options)(handle)
    await bus.ready()
    with tracer.start_as_current_span("caller") as caller:
        await OrderTraced(order_id=7).dispatch()
    async with asyncio.timeout(PATIENCE_S):
        inside = await done
    sent = span_of(exporter, "publish orders.{order_id}")
    assert sent.attributes["messaging.destination.template"] == "orders.{order_id}"
    handled = await handled_span(exporter)
    assert handled.kind is SpanKind.CONSUMER
    assert handled.get_span_context().span_id == inside.span_id
    assert handled.parent.span_id == sent.get_span_context().span_id
    assert inside.trace_id == caller.get_span_context().trace_id
    assert handled.attributes["messaging.destination.name"] == "orders.7"
    assert handled.attributes.get("messaging.consumer.group.name") == options.get("group")


async def test_handler_that_fails_has_a_span_of_status_error(bus, tracer, exporter):
    def handle(event: OrderTraced) -> None:
        raise ValueError("no")

    bus.subscribe(OrderTraced)(handle)
    await bus.ready()
    await OrderTraced(order_id=7).dispatch()
    handled = await handled_span(exporter)
    assert handled.status.status_code is StatusCode.ERROR
    assert handled.events[0].name == "exception"


async def test_listener_has_a_span_in_the_trace_of_its_dispatch(bus, tracer, exporter):
    @bus.listen(OrderTraced)
    def audit(event):
        pass

    with tracer.start_as_current_span("caller") as caller:
        await OrderTraced(order_id=7).dispatch()
    span = span_of(exporter, "listen OrderTraced")
    assert span.parent.span_id == caller.get_span_context().span_id
    assert span.attributes["code.function.name"].endswith("audit")


async def test_job_is_processed_in_the_trace_of_its_dispatch(bus, tracer, exporter):
    with tracer.start_as_current_span("caller") as caller:
        await InvoiceTraced(order_id=7).dispatch()
    worker = Worker(bus, queues=("traced",), max_jobs=1, max_time=PATIENCE_S)
    assert (await worker.run()).done == 1
    sent, done = span_of(exporter, "publish traced"), span_of(exporter, "process traced")
    assert (sent.kind, done.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert done.parent.span_id == sent.get_span_context().span_id
    assert done.get_span_context().trace_id == caller.get_span_context().trace_id


@pytest.mark.parametrize("is_installed", [False, True])
async def test_plain_path_adds_no_header_and_no_field(bus, monkeypatch, is_installed):
    """Without the package, and with its API alone, which has nowhere to send spans to."""
    if not is_installed:
        monkeypatch.setattr(tracing._State, "tracing", None)
    assert tracing.is_loaded() is is_installed
    take = await received(bus, bus.subjects.live("general"))
    await bus.publish("general", "news", {}, volatile=True)
    assert dict((await take()).headers) == {}
    await InvoiceTraced(order_id=7).dispatch()
    [taken] = await (await bus.queues()).reader("traced").fetch(1)
    assert b'"trace"' not in taken.payload
    await taken.done()


SET_LATER = """
import asyncio
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from eventbus import EventBus, Settings

async def main():
    async with EventBus(Settings(driver="memory")) as bus:
        await bus.publish("general", "news", {})
        exporter, provider = InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        trace.set_tracer_provider(provider)
        async with asyncio.timeout(10):
            while not exporter.get_finished_spans():
                await bus.publish("general", "news", {})
                await asyncio.sleep(0.01)
        print(exporter.get_finished_spans()[0].name)

asyncio.run(main())
"""


def test_tracer_provider_that_is_set_after_the_bus_has_opened_is_noticed():
    found = subprocess.run(
        [sys.executable, "-c", SET_LATER], capture_output=True, check=True, text=True
    )
    assert found.stdout.strip() == "publish"


def test_library_is_imported_without_opentelemetry():
    code = (
        "import eventbus, eventbus_edge.app, sys; print([m for m in sys.modules if 'opentel' in m])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert found.stdout.strip() == "[]"


async def test_bus_works_where_the_package_is_not_installed(settings, monkeypatch):
    monkeypatch.setattr(tracing._State, "tracing", None)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", None)
    async with EventBus(settings) as bus:
        assert not tracing.is_loaded()
        await bus.publish("general", "news", {})
