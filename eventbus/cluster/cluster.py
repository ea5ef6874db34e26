"""Asks all nodes of a cluster a question, and collects the answers within a time limit."""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import (
    Awaitable,
    Callable,
    Sequence,
)
from typing import (
    Any,
    Final,
    TypeAlias,
    TypeVar,
    cast,
)

import msgspec

from eventbus.channels import Subjects
from eventbus.cluster.gather import (
    MAX_NODES,
    Gather,
    Gathered,
    Question,
)
from eventbus.drivers import Delivery, Driver, Subscription
from eventbus.errors import (
    ClusterBusy,
    ConnectionFailed,
    DriverError,
    EventBusError,
    InvalidChannel,
)
from eventbus.messages import json_decoder
from eventbus.pacing import paced
from eventbus.tasks import Tasks
from eventbus.user_code import guarded

__all__ = ["BusLag", "Cluster"]


class BusLag:
    """The time from publishing a hello to receiving it back from the bus.

    The hello queues behind all that the bus holds for the node. So it shows any delay there,
    whatever the driver.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._under_way: float | None = None

    def sent(self, now: float) -> None:
        """A hello is sent; while an earlier one is under way, that one counts."""
        if self._under_way is None:
            self._under_way = now

    def received(self, now: float) -> None:
        """A hello has come back."""
        if self._under_way is not None:
            self._seconds = now - self._under_way
            self._under_way = None

    def seconds(self, now: float) -> float:
        """How long the last hello took, or the current one so far, whichever is longer."""
        if self._under_way is None:
            return self._seconds
        return max(self._seconds, now - self._under_way)


_log = logging.getLogger(__name__)

Handler: TypeAlias = Callable[[Any], Awaitable[Sequence[Any]]]
Q = TypeVar("Q")
A = TypeVar("A")

MAX_ASKING: Final = 100
"""The largest number of concurrent questions of this node, and of answers in preparation."""
_MISSED_HELLOS: Final = 2.5
_PAUSE_HELLOS: Final = _MISSED_HELLOS - 1.0
"""After a longer pause of this process, a node whose hello was due when it began may be dropped."""


class _Hello(msgspec.Struct, tag="hello"):
    node: str


class _Look(msgspec.Struct, tag="look"):
    """Sent by a client that is not a node, to discover the nodes."""

    node: str


class _Bye(msgspec.Struct, tag="bye"):
    node: str


class _Ask(msgspec.Struct, tag="ask"):
    id: str
    node: str
    question: str
    body: msgspec.Raw


class _Answer(msgspec.Struct, tag="answer"):
    id: str
    node: str
    part: int
    parts: int
    body: msgspec.Raw


class _Unanswered(msgspec.Struct, tag="unanswered"):
    id: str
    node: str
    reason: str


_decode: Final = json_decoder(cast(Any, _Hello | _Look | _Bye | _Ask | _Answer | _Unanswered))
_encode: Final = msgspec.json.Encoder().encode


class Cluster:
    """The view of one node on the cluster; with `is_node` false, of a client that only asks."""

    def __init__(
        self,
        driver: Driver,
        subjects: Subjects,
        node_id: str,
        on_fault: Callable[[str], object],
        *,
        is_node: bool = True,
        patience_s: float = 1.0,
        hello_s: float = 2.0,
    ) -> None:
        """`on_fault` gets a word for each kind of fault, to be counted.

        A node without a hello for two and a half times `hello_s` is dropped.
        """
        self.node_id = node_id
        self.lag = BusLag()
        """Measured by the hellos to all, which reach the node itself too."""
        self._driver = driver
        self._all = subjects.control("nodes")
        self._subjects = subjects
        self._on_fault = on_fault
        self._is_node = is_node
        self._patience_s = patience_s
        self._hello_s = hello_s
        self._handlers: dict[str, tuple[type[Any], Handler]] = {}
        self._seen: dict[str, float] = {}
        self._asked: dict[str, Gather] = {}
        self._background = Tasks(MAX_ASKING, lambda: on_fault("overloaded"))
        self._subscriptions: list[Subscription] = []
        self._announcing = Tasks()
        self._settled_at = 0.0
        self._announced_at = float("inf")

    def answer(
        self, question: Question[Q, A], handler: Callable[[Q], Awaitable[Sequence[A]]]
    ) -> None:
        """Answer a kind of question with one or more parts, each smaller than a message may be.

        What the handler raises is logged, and reported to the node that asked.
        """
        self._handlers[question.name] = (question.asks, handler)

    async def open(self) -> None:
        """Subscribe, and announce this node. Raises a DriverError."""
        for subject in (self._all, self._own_subject(self.node_id)):
            self._subscriptions.append(await self._driver.subscribe(subject, self._receive))
        self._unsettle(self._patience_s)
        self._announcing.keep(self._announce, "hellos")
        if not self._is_node:
            self._send(self._all, _Look(self.node_id))

    async def aclose(self) -> None:
        """Announce that this node leaves, if the bus still accepts that, and unsubscribe."""
        if self._announcing:
            await self._announcing.aclose()
            if self._is_node:
                await self._publish(self._all, _encode(_Bye(self.node_id)))
        await self._background.aclose()
        for subscription in self._subscriptions:
            try:
                await subscription.aclose()
            except DriverError as exc:
                _log.warning("could not leave the cluster's subjects: %s", exc)

    @property
    def where(self) -> str:
        """The driver and the namespace, for errors."""
        return f"{self._driver.name}, namespace {self._subjects.namespace!r}"

    @property
    def driver_name(self) -> str:
        """The name of the driver that carries the questions."""
        return self._driver.name

    @property
    def nodes(self) -> frozenset[str]:
        """The other nodes with a recent hello."""
        oldest = self._now() - _MISSED_HELLOS * self._hello_s
        return frozenset(node for node, at in self._seen.items() if at >= oldest)

    async def ask(self, question: Question[Q, A], body: Q) -> Gathered[A]:
        """Ask all nodes, this one included, and wait for their answers within the time limit.

        Raises ClusterBusy, and a DriverError if the bus does not accept the question.
        """
        if len(self._asked) >= MAX_ASKING:
            raise ClusterBusy(f"{MAX_ASKING} questions to the cluster are under way already")
        if not self._driver.is_connected:
            # A driver that buffers would accept the question, and only this node would answer.
            message = "not connected to the bus: the other nodes cannot be asked"
            raise ConnectionFailed(message, driver=self._driver.name)
        call_id = secrets.token_hex(8)
        complete = asyncio.Event()
        if self._now() - self._announced_at > _PAUSE_HELLOS * self._hello_s:
            self._unsettle(_MISSED_HELLOS * self._hello_s)  # this process was stopped for a while
        is_settled = self._now() >= self._settled_at
        gather = Gather(question, set(self.nodes), complete.set, has_strangers=not is_settled)
        self._asked[call_id] = gather
        deadline = self._now() + self._patience_s
        try:
            async with asyncio.timeout_at(deadline):
                call = _Ask(call_id, self.node_id, question.name, msgspec.Raw(_encode(body)))
                await self._driver.publish(self._all, _encode(call))
                await self._answer_own(gather, body)
                gather.check()
                await complete.wait()
        except TimeoutError:  # the result names the missing nodes
            if self._now() - deadline > self._patience_s / 4:
                # This process was stopped: the answers may wait in its socket.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._patience_s):
                        await complete.wait()
        finally:
            del self._asked[call_id]
        result = gather.result()
        for _ in result.missing:
            self._on_fault("unanswered")
        return result

    async def _answer_own(self, gather: Gather, body: Any) -> None:
        if gather.question.name in self._handlers:
            parts = await self._handlers[gather.question.name][1](body)
            for number, part in enumerate(parts):
                gather.add(self.node_id, number, len(parts), part)

    # Receiving

    def _receive(self, delivery: Delivery) -> None:
        try:
            message = _decode(delivery.payload)
            if message.node != self.node_id:
                self._handle(message)
            elif isinstance(message, _Hello):
                self.lag.received(self._now())
        except (msgspec.DecodeError, UnicodeDecodeError, InvalidChannel) as exc:
            self._on_fault("malformed")
            _log.debug("not a message of the cluster, on %s: %s", delivery.subject, exc)

    def _handle(self, message: _Hello | _Look | _Bye | _Ask | _Answer | _Unanswered) -> None:
        match message:
            case _Hello(node):
                if self._note_alive(node) and self._is_node:
                    self._send(self._own_subject(node), _Hello(self.node_id))
            case _Look(node):
                if self._is_node:
                    self._send(self._own_subject(node), _Hello(self.node_id))
            case _Bye(node):
                self._seen.pop(node, None)
                for gather in self._asked.values():
                    gather.leave(node)
            case _Ask():
                self._answer(message)
            case _Answer(call_id, node, part, parts, body):
                self._note_alive(node)
                if (call := self._asked.get(call_id)) is not None:
                    answer = msgspec.json.decode(body, type=call.question.answers)
                    call.add(node, part, parts, answer)
            case _Unanswered(call_id, node, reason):
                if (call := self._asked.get(call_id)) is not None:
                    _log.warning("node %s does not answer: %s", node, reason[:200])
                    call.refuse(node)

    def _note_alive(self, node: str) -> bool:
        """Note that a node is alive; returns whether it is new."""
        is_new = node not in self._seen
        if not is_new or len(self._seen) < MAX_NODES:
            self._seen[node] = self._now()
        return is_new

    def _answer(self, call: _Ask) -> None:
        if not self._is_node:
            return
        subject = self._own_subject(call.node)
        if call.question not in self._handlers:
            reason = f"node {self.node_id} knows no question {call.question[:40]!r}"
            self._send(subject, _Unanswered(call.id, self.node_id, reason))
            return
        asks, handler = self._handlers[call.question]
        body = msgspec.json.decode(call.body, type=asks)
        self._background.start(
            self._prepare(call, subject, handler, body), f"an answer to {call.question}"
        )

    async def _prepare(self, call: _Ask, subject: str, handler: Handler, body: Any) -> None:
        try:
            with guarded():
                parts = await handler(body)
        except Exception:  # noqa: BLE001 - any fault is reported to the node that asked
            _log.exception("the answer to %s failed", call.question)
            refusal = _Unanswered(call.id, self.node_id, "an internal error")
            await self._publish(subject, _encode(refusal))
            return
        answers = [
            _encode(_Answer(call.id, self.node_id, number, len(parts), msgspec.Raw(_encode(part))))
            async for number, part in paced(enumerate(parts))
        ]
        await self._publish(subject, *answers)

    # Sending

    def _send(self, subject: str, message: msgspec.Struct) -> None:
        self._background.start(self._publish(subject, _encode(message)), f"message to {subject}")

    async def _publish(self, subject: str, *payloads: bytes) -> None:
        try:
            for payload in payloads:
                await self._driver.publish(subject, payload)
        except EventBusError as exc:
            self._on_fault("unpublished")
            _log.debug("could not publish to %s: %s", subject, exc)
            self._unsettle(_MISSED_HELLOS * self._hello_s)

    async def _announce(self) -> None:
        """Send hellos, if this is a node, and notice when those of others may have been missed."""
        while True:
            now = self._now()
            if now - self._announced_at > _PAUSE_HELLOS * self._hello_s:
                self._unsettle(_MISSED_HELLOS * self._hello_s)  # the process was stopped
            self._announced_at = now
            if self._is_node:
                self.lag.sent(now)
                await self._publish(self._all, _encode(_Hello(self.node_id)))
            if not self._driver.is_connected:
                self._unsettle(_MISSED_HELLOS * self._hello_s)
            alive = self.nodes
            self._seen = {node: at for node, at in self._seen.items() if node in alive}
            await asyncio.sleep(self._hello_s)

    def _unsettle(self, seconds: float) -> None:
        """Some nodes may be unknown: for so long, questions wait for the whole time limit."""
        self._settled_at = max(self._settled_at, self._now() + seconds)

    def _own_subject(self, node: str) -> str:
        return self._subjects.control(f"nodes.{node}")

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
