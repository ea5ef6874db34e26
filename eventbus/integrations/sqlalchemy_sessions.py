"""Events with `after_commit=True` wait for the commit of SQLAlchemy's sessions."""

import contextvars
import logging
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Final

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import ORMExecuteState, Session, SessionTransaction
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from eventbus.attempts import RateLimitedLog
from eventbus.errors import ConfigError
from eventbus.events import (
    Held,
    HeldEvents,
    Holder,
    add_to_request,
    parts_of_request,
    provide_holders,
)
from eventbus.sync import send_committed

__all__ = ["after_commit"]

_log = logging.getLogger(__name__)
_dropped_log = RateLimitedLog(_log)

# `event.contains` knows a target by its id(), which another one may have later.
_targets: Final[weakref.WeakSet[Any]] = weakref.WeakSet()
_KEY: Final = "eventbus.transaction"
"""Where a session's `info` has its transaction."""
_around: contextvars.ContextVar[tuple["_Transaction", ...]] = contextvars.ContextVar(
    "eventbus_sessions", default=()
)
"""The transactions that began, or whose session was used, in this context."""


def after_commit(sessions: Any) -> None:
    """Let events with `after_commit=True` wait for the commits of these sessions.

    `sessions` is a sessionmaker, an async_sessionmaker, a scoped session, a subclass of Session or
    AsyncSession, or one session; `Session` stands for all sessions of the process. Call it once, at
    the start of the program. Of several sessions in use, the one whose transaction began last holds
    an event. In applications of FastAPI, Starlette and Litestar, a thread that has used no session
    is held by the one that began last in the threads of the same request.

    Raises ConfigError for an AsyncSession class without a `sync_session_class` of its own.
    """
    target = _sync_sessions(sessions)
    if target not in _targets:
        for name, listener in _LISTENERS.items():
            event.listen(target, name, listener)
        _targets.add(target)
    provide_holders(_innermost)


def _sync_sessions(sessions: Any) -> Any:
    """The target of the session events, which are those of the sync session within."""
    if isinstance(sessions, async_scoped_session):
        sessions = sessions.session_factory
    if isinstance(sessions, AsyncSession):
        return sessions.sync_session
    if isinstance(sessions, async_sessionmaker):
        chosen: Any = sessions.kw.get("sync_session_class")
        if chosen is None:  # a class of its own: others share that of AsyncSession
            chosen = type("Session", (sessions.class_.sync_session_class,), {})
            sessions.configure(sync_session_class=chosen)
        return chosen
    if isinstance(sessions, type) and issubclass(sessions, AsyncSession):
        if sessions.sync_session_class is Session:
            raise ConfigError(
                f"{sessions.__name__} has no sync_session_class of its own: give after_commit() "
                "its async_sessionmaker, or Session for all sessions of the process"
            )
        return sessions.sync_session_class
    return sessions


class _Level:
    """What a transaction, or one of its savepoints, holds."""

    def __init__(self, transaction: SessionTransaction) -> None:
        self.transaction = transaction
        self.events = HeldEvents()
        self.has_committed = False
        self.was_rolled_back = False

    def commit(self) -> None:
        """It has been committed."""
        self.has_committed = True

    def roll_back(self) -> None:
        """It has been rolled back."""
        self.was_rolled_back = True


class _Transaction:
    """A transaction of a session; the last of its levels is the innermost savepoint."""

    def __init__(self, transaction: SessionTransaction) -> None:
        self.levels = [_Level(transaction)]

    @property
    def is_open(self) -> bool:
        return bool(self.levels)

    def hold(self, held: Held) -> None:
        """See `Holder`."""
        *outer, innermost = self.levels
        innermost.events.add(held, others=sum(len(level.events) for level in outer))

    def end(self, ended: SessionTransaction) -> Sequence[Held]:
        """End a level, and return what to send now."""
        if all(level.transaction is not ended for level in self.levels):
            return ()  # of a flush
        while (level := self.levels.pop()).transaction is not ended:
            pass  # a savepoint that ends with its outer one
        if not level.has_committed:
            if len(level.events) and not level.was_rolled_back:
                _dropped_log.warning(
                    "%d events with after_commit are dropped: their session was closed without a "
                    "commit", len(level.events),
                )  # fmt: skip
            return ()
        if self.levels:
            self.levels[-1].events.take_over(level.events)
            return ()
        return level.events.released()


def _innermost() -> Sequence[Holder]:
    # A session that another thread of the request began may belong to a task that runs beside this
    # one: those of this context come first.
    for transactions in (_around.get(), parts_of_request()):
        for each in reversed(transactions):
            if isinstance(each, _Transaction) and each.is_open:
                return [each]
    return []


def _enter(transaction: _Transaction) -> None:
    _around.set((*(each for each in _around.get() if each.is_open), transaction))
    add_to_request(transaction)


def _began(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        session.info[_KEY] = _Transaction(transaction)
        _enter(session.info[_KEY])
    elif transaction.nested and (current := session.info.get(_KEY)) is not None:
        current.levels.append(_Level(transaction))


def _use(session: Session) -> None:
    """The session may have begun its transaction in another context, such as that of a thread."""
    current = session.info.get(_KEY)
    if current is not None and current not in _around.get():
        _enter(current)


def _used_by_statement(state: ORMExecuteState) -> None:
    _use(state.session)


def _used_by_object(session: Session, _instance: object) -> None:
    _use(session)


def _committed(session: Session) -> None:
    if (current := session.info.get(_KEY)) is not None:
        current.levels[-1].commit()


def _rolled_back(session: Session) -> None:
    if (current := session.info.get(_KEY)) is not None:
        current.levels[-1].roll_back()


def _ended(session: Session, transaction: SessionTransaction) -> None:
    # Not yet at `after_commit`: there, the session still has its connection, and takes no work.
    if (current := session.info.get(_KEY)) is None:
        return
    held = current.end(transaction)
    if not current.is_open:
        del session.info[_KEY]
    if held:
        send_committed(held, await_only if _is_async() else None)


def _is_async() -> bool:
    """Whether the session belongs to an AsyncSession, whose calls run in a greenlet."""
    try:
        return in_greenlet()
    except ImportError:  # the package greenlet is not installed
        return False


_LISTENERS: Final[dict[str, Callable[..., None]]] = {
    "after_transaction_create": _began,
    "do_orm_execute": _used_by_statement,
    "after_attach": _used_by_object,
    "after_commit": _committed,
    "after_rollback": _rolled_back,
    "after_transaction_end": _ended,
}
