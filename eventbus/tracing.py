"""OpenTelemetry traces, if its API is installed: `pip install eventbus[otel]`.

Each publish is a span. Its context travels in the message headers (W3C `traceparent` and
`tracestate`, or what the application's propagators write), so spans in other processes belong to
the same trace. Names follow the semantic conventions for messaging and HTTP
(opentelemetry.io/docs/specs/semconv, 1.28 and later). Without the package, or before a tracer
provider is set, these functions do nothing.
"""

import contextlib
import importlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from opentelemetry.trace import SpanKind, TracerProvider

__all__ = [
    "delivered",
    "is_loaded",
    "is_recording",
    "is_traced",
    "listening",
    "load",
    "processing",
    "sending",
    "serving",
]

Headers = Mapping[str, str]
OnStatus = Callable[[int], None]

_NOTHING: Final[AbstractContextManager[Headers]] = contextlib.nullcontext({})
_NO_STATUS: Final[AbstractContextManager[OnStatus]] = contextlib.nullcontext(lambda _: None)
_OWN_CONTEXT: Final = "traceparent"
_SAMPLED: Final = 0x01
_SERVER_ERROR: Final = 500
LOOK_S: Final = 0.1
"""The pause between two searches for a tracer provider, while none is set."""


class _Tracing:
    """The OpenTelemetry API. Raises ImportError if it is not installed."""

    def __init__(self, provider: "TracerProvider | None") -> None:
        self._trace = trace = importlib.import_module("opentelemetry.trace")
        self._propagate = importlib.import_module("opentelemetry.propagate")
        self._tracer = trace.get_tracer("eventbus", tracer_provider=provider)
        self._records = provider is not None
        self._look_at = 0.0
        self.kind = trace.SpanKind

    @property
    def records(self) -> bool:
        """Whether a tracer provider is set, usually the SDK's. Without one, spans are discarded.

        One that is set later is noticed within `LOOK_S`: each look reads the environment.
        """
        if not self._records and (now := time.monotonic()) >= self._look_at:
            self._look_at = now + LOOK_S
            present = self._trace.get_tracer_provider()
            self._records = not isinstance(present, self._trace.ProxyTracerProvider)
        return self._records

    @contextlib.contextmanager
    def span(
        self,
        name: str,
        kind: "SpanKind",
        attributes: Mapping[str, str | int],
        parent: Headers | None = None,
    ) -> Iterator[Any]:
        """Run the block in a new current span, in the trace of the headers `parent` if given."""
        context = None if parent is None else self._propagate.extract(parent)
        with self._tracer.start_as_current_span(
            name, context=context, kind=kind, attributes=attributes
        ) as span:
            yield span

    @contextlib.contextmanager
    def sending(
        self, name: str, attributes: Mapping[str, str | int], headers: Headers
    ) -> Iterator[Headers]:
        with self.span(name, self.kind.PRODUCER, attributes):
            context: dict[str, str] = {}
            if _OWN_CONTEXT not in headers:  # keep a context that the publisher set
                self._propagate.inject(context)
            yield context

    @contextlib.contextmanager
    def serving(
        self, name: str, attributes: Mapping[str, str | int], headers: Headers
    ) -> Iterator[OnStatus]:
        with self._tracer.start_as_current_span(
            name,
            context=self._propagate.extract(headers),
            kind=self.kind.SERVER,
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:

            def set_status(status: int) -> None:
                span.set_attribute("http.response.status_code", status)
                if status >= _SERVER_ERROR:
                    span.set_status(self._trace.StatusCode.ERROR)

            yield set_status

    def delivered(
        self, name: str, attributes: Mapping[str, str | int], parent: Headers, begun_ns: int
    ) -> None:
        context = self._propagate.extract(parent)
        if self._trace.get_current_span(context).get_span_context().trace_flags & _SAMPLED:
            self._tracer.start_span(
                name,
                context=context,
                kind=self.kind.CONSUMER,
                attributes=attributes,
                start_time=begun_ns,
            ).end()


class _State:
    tracing: _Tracing | None = None


def load(provider: "TracerProvider | None" = None) -> None:
    """Start tracing, if the package is installed. Opening a bus calls this.

    `provider` overrides the global tracer provider.
    """
    if provider is None and _State.tracing is not None:
        return
    with contextlib.suppress(ImportError):
        _State.tracing = _Tracing(provider)


def _recording() -> _Tracing | None:
    tracing = _State.tracing
    return tracing if tracing is not None and tracing.records else None


def is_recording() -> bool:
    """Whether spans are recorded: code that runs for each message asks before it makes one."""
    tracing = _State.tracing
    return tracing is not None and tracing.records


def is_loaded() -> bool:
    """Whether the package is installed and a bus has been opened."""
    return _State.tracing is not None


def sending(
    system: str, destination: str, message_id: str, *, template: str | None, headers: Headers
) -> AbstractContextManager[Headers]:
    """A span for publishing a message in the block. Yields the trace context as headers.

    `template` is the channel template, such as `orders.{order_id}`. It keeps span names few.
    """
    tracing = _recording()
    if tracing is None:
        return _NOTHING
    name = f"publish {template}" if template else "publish"
    attributes = _messaging(
        system, "publish", destination, template=template, message_id=message_id
    )
    return tracing.sending(name, attributes, headers)


def processing(
    system: str,
    destination: str,
    message_id: str | None,
    *,
    template: str | None,
    headers: Headers,
    group: str | None = None,
) -> AbstractContextManager[Any]:
    """A span for the handler of a message, in the trace of its headers."""
    tracing = _recording()
    if tracing is None:
        return _NOTHING
    name = f"process {template}" if template else "process"
    attributes = _messaging(
        system, "process", destination, template=template, message_id=message_id
    )
    if group:
        attributes["messaging.consumer.group.name"] = group
    return tracing.span(name, tracing.kind.CONSUMER, attributes, headers)


def listening(event: str, listener: Callable[..., Any]) -> AbstractContextManager[Any]:
    """A span for a listener in the same process, in the trace of the dispatch."""
    tracing = _recording()
    if tracing is None:
        return _NOTHING
    named = listener if hasattr(listener, "__qualname__") else type(listener)
    attributes = {"code.function.name": f"{named.__module__}.{named.__qualname__}"}
    return tracing.span(f"listen {event}", tracing.kind.INTERNAL, attributes)


def serving(method: str, route: str, headers: Headers) -> AbstractContextManager[OnStatus]:
    """A span for an HTTP request. Yields a function to call with the status.

    The span has neither the URL nor headers, since these may contain a token.
    """
    tracing = _recording()
    if tracing is None:
        return _NO_STATUS
    attributes = {"http.request.method": method, "http.route": route}
    return tracing.serving(f"{method} {route}", attributes, headers)


def is_traced(headers: Headers) -> bool:
    """Whether a message has a trace; most have none."""
    return headers.get(_OWN_CONTEXT) is not None


def delivered(system: str, channel: str, *, headers: Headers, begun_ns: int, clients: int) -> None:
    """Record the delivery of a message to a node's clients as one span, if the trace is sampled."""
    if not is_traced(headers) or (tracing := _recording()) is None:
        return
    attributes = _messaging(system, "deliver", channel)
    attributes["eventbus.clients"] = clients
    tracing.delivered("deliver", attributes, headers, begun_ns)


def _messaging(
    system: str,
    operation: str,
    destination: str,
    *,
    template: str | None = None,
    message_id: str | None = None,
) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {
        "messaging.system": system,
        "messaging.operation.type": "send" if operation == "publish" else "process",
        "messaging.operation.name": operation,
        "messaging.destination.name": destination,
    }
    if template and template != destination:
        attributes["messaging.destination.template"] = template
    if message_id is not None:
        attributes["messaging.message.id"] = message_id
    return attributes
