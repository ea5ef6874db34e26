"""Calls of the application's code, which may raise anything, and texts of what it raised.

`guarded` and `call_guarded` keep an exception of the application from ending our own tasks.
`must_pass` and `is_cancelled` tell a real cancellation from a leaked one. The rest shows exceptions
in logs and records, in valid and bounded text.
"""

import asyncio
import contextvars
import inspect
import itertools
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Final, Self

from eventbus.errors import CallbackFailed

__all__ = [
    "call_apart",
    "call_guarded",
    "calling_tasks",
    "cause_of",
    "guarded",
    "is_cancelled",
    "members_of",
    "must_pass",
    "only_cause",
    "takes_context",
    "text_of",
    "traceback_of",
    "type_name",
    "valid_text",
]


MAX_TEXT: Final = 1000
_MAX_NAME: Final = 200
_MAX_GROUP: Final = 20
"""How many members of an exception group are shown."""
_MAX_DEPTH: Final = 10


_waiting: contextvars.ContextVar["frozenset[asyncio.Task[Any]]"] = contextvars.ContextVar(
    "eventbus_waiting_tasks", default=frozenset()
)
"""The tasks that wait for the current one in `call_apart`."""


class guarded:  # noqa: N801 - reads as contextlib's managers do
    """`with guarded():` around a call of the application's code, and around awaiting its result.

    Raises CallbackFailed in place of a BaseException, unless that ends the task or the process.
    """

    __slots__ = ("_cancels", "_task")

    def __enter__(self) -> Self:
        self._task = _current_task()
        # Earlier requests were delivered, or swallowed by the application's code, before this.
        self._cancels = 0 if self._task is None else self._task.cancelling()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is None or isinstance(exc, Exception) or self._must_pass(exc):
            return
        raise CallbackFailed(f"the application's code raised {type_name(exc)}") from exc

    def _must_pass(self, exc: BaseException) -> bool:
        if isinstance(exc, GeneratorExit):
            # A coroutine is closed by another task, or by the garbage collector.
            return _current_task() is not self._task
        if isinstance(exc, asyncio.CancelledError):
            return self._task is not None and self._task.cancelling() > self._cancels
        return must_pass(exc)


async def call_guarded(callback: Callable[..., Any], *arguments: Any) -> Any:
    """Call an async or plain callable within `guarded()`; returns its result."""
    with guarded():
        answer = callback(*arguments)
        return await answer if inspect.isawaitable(answer) else answer


def takes_context(handler: Callable[..., Any]) -> bool:
    """Whether a handler takes a second parameter, the context. Raises TypeError."""
    if not callable(handler):
        raise TypeError(f"a handler is a callable, not of type {type(handler).__name__}")
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(handler).parameters
    except ValueError:  # some built-in functions have no signature
        return False
    wanted = [
        parameter
        for parameter in parameters.values()
        if parameter.kind in positional and parameter.default is parameter.empty
    ]
    return len(wanted) > 1


async def call_apart(callback: Callable[..., Any], *arguments: Any) -> Any:
    """Like `call_guarded`, but in a task of its own, which is cancelled when the caller is.

    So the callback cannot cancel the caller's task, nor leave it with a cancellation that counts.
    """
    token = _waiting.set(calling_tasks())
    work = asyncio.create_task(call_guarded(callback, *arguments))
    _waiting.reset(token)
    with guarded():
        return await work


def calling_tasks() -> "frozenset[asyncio.Task[Any]]":
    """The current task, and the tasks that wait for it in `call_apart`."""
    task = _current_task()
    return _waiting.get() if task is None else _waiting.get() | {task}


def must_pass(exc: BaseException) -> bool:
    """Whether an exception of a plain function ends the task or the process.

    For functions that are called for each message: `try` is free, `guarded()` is not.
    """
    if isinstance(exc, asyncio.CancelledError):
        return is_cancelled()
    return isinstance(exc, KeyboardInterrupt) and _may_be_ctrl_c()


def is_cancelled() -> bool:
    """Whether the current task was cancelled.

    Otherwise a CancelledError was leaked by code that awaited a cancelled task or future.
    """
    task = _current_task()
    return task is not None and task.cancelling() > 0


def cause_of(exc: BaseException) -> BaseException:
    """The exception itself, or the one that a CallbackFailed replaced."""
    if isinstance(exc, CallbackFailed) and exc.__cause__ is not None:
        return exc.__cause__
    return exc


def only_cause(exc: BaseException) -> BaseException:
    """Unwrap an exception: `cause_of`, and the member of a group of one."""
    while True:
        if isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
            exc = exc.exceptions[0]
        elif (cause := cause_of(exc)) is not exc:
            exc = cause
        else:
            return exc


def members_of(exc: BaseException) -> list[BaseException]:
    """The exception itself, or the first members of a group and its subgroups."""
    return list(itertools.islice(_members(exc, _MAX_DEPTH), _MAX_GROUP))


def type_name(exc: BaseException) -> str:
    """The type's name, with its module unless it is built in."""
    cls = type(exc)
    name = cls.__qualname__
    return valid_text(
        name if cls.__module__ == "builtins" else f"{cls.__module__}.{name}", _MAX_NAME
    )


def text_of(exc: BaseException, limit: int = MAX_TEXT) -> str:
    """The exception's message; for a group, the types and messages of its members."""
    if not isinstance(exc, BaseExceptionGroup):
        return _own_text(exc, limit)
    members = (f"{type(one).__qualname__}: {_own_text(one, limit)}" for one in members_of(exc))
    return valid_text("; ".join(members), limit)


def traceback_of(exc: BaseException) -> str:
    """The traceback as Python prints it, or what can be shown of it."""
    try:
        with guarded():
            return valid_text("".join(traceback.format_exception(exc)))
    except Exception as fault:  # noqa: BLE001 - the exception's own code may raise anything
        return f"{type_name(exc)}: {text_of(exc)}\n(no traceback: {type_name(fault)})"


def valid_text(text: str, limit: int | None = None) -> str:
    """The text with characters that UTF-8 cannot encode escaped, cut to `limit` characters."""
    if limit is not None and len(text) > limit:
        text = f"{text[: limit - 1]}…"
    return text.encode("utf-8", "backslashreplace").decode()


def _own_text(exc: BaseException, limit: int) -> str:
    try:
        with guarded():
            return valid_text("".join(str(exc)), limit)
    except Exception as fault:  # noqa: BLE001 - its __str__ may raise anything
        return f"(its text cannot be shown: __str__ raised {type_name(cause_of(fault))})"


def _members(exc: BaseException, depth: int) -> Iterator[BaseException]:
    if isinstance(exc, BaseExceptionGroup) and depth:
        for one in exc.exceptions:
            yield from _members(one, depth - 1)
    else:
        yield cause_of(exc)


def _current_task() -> "asyncio.Task[Any] | None":
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        return None


def _may_be_ctrl_c() -> bool:
    """Whether Ctrl-C raises KeyboardInterrupt in this thread, as Python's own handlers do.

    It does not outside of the main thread, or with another handler of SIGINT, such as one of
    `loop.add_signal_handler`: then the application's code has raised it.
    """
    if threading.current_thread() is not threading.main_thread():
        return False
    handler = signal.getsignal(signal.SIGINT)
    runner = getattr(getattr(handler, "func", None), "__self__", None)
    return handler is signal.default_int_handler or isinstance(runner, asyncio.Runner)
