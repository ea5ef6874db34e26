"""Calls of the application's code, which may raise anything, and texts of what it raised.

`guarded` and `call_guarded` keep an exception of the application from ending our own tasks.
`must_pass` and `is_cancelled` tell a real cancellation from a leaked one. The rest shows exceptions
in logs and records, in valid and bounded text.
"""

import asyncio
import contextvars
import inspect
import itertools
import re
import signal
import threading
import traceback
import types
import unicodedata
from collections.abc import Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from eventbus.errors import BusStateError, CallbackFailed

__all__ = [
    "advice_on",
    "call_apart",
    "call_guarded",
    "call_plain",
    "calling_tasks",
    "cause_of",
    "check_callable",
    "check_not_async",
    "ends_task",
    "guarded",
    "is_cancelled",
    "is_visible",
    "members_of",
    "must_pass",
    "only_cause",
    "printable",
    "start_waited",
    "takes_context",
    "text_of",
    "traceback_of",
    "type_name",
    "valid_text",
]

T = TypeVar("T")

MAX_TEXT: Final = 1000
_BLOCKED: Final = (
    ": it called blocking code in the event loop, where it runs; make it async, and await the "
    "async form of that code, or a thread: `await asyncio.to_thread(function, event)`"
)
_SUSPECT: Final = re.compile(r"[^\x20-\x7e]")
_IS_GENERATOR: Final = "is a generator: its code would not run (use a function without `yield`)"
_CONTEXTS: Final = ("EventContext", "ClientMessage")
"""The types of a handler's second argument."""
_MAX_NAME: Final = 200
_MAX_GROUP: Final = 20
"""How many members of an exception group are shown."""
_MAX_DEPTH: Final = 10


_waiting: contextvars.ContextVar["frozenset[asyncio.Task[Any]]"] = contextvars.ContextVar(
    "eventbus_waiting_tasks", default=frozenset()
)
"""The tasks that wait for the current one, see `start_waited`."""


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
        if exc is None or isinstance(exc, Exception) or ends_task(exc, self._task, self._cancels):
            return
        raise _failure(exc) from exc


def ends_task(exc: BaseException, task: "asyncio.Task[Any] | None", cancels: int) -> bool:
    """Whether an exception of awaited code ends the task or the process; otherwise it was leaked.

    The code ran in `task`, which had been requested to cancel `cancels` times before.
    """
    if isinstance(exc, GeneratorExit):
        # A coroutine is closed by another task, or by the garbage collector.
        return _current_task() is not task
    if isinstance(exc, asyncio.CancelledError):
        return task is not None and task.cancelling() > cancels
    return must_pass(exc)


def call_plain(function: Callable[..., T], *arguments: Any) -> T:
    """Call a plain function of the application, or one that calls such; returns its result.

    It raises what `guarded()` does, and costs nothing when nothing is raised. A plain function
    cannot be cancelled, nor closed as a coroutine is.
    """
    try:
        return function(*arguments)
    except Exception:
        raise
    except BaseException as exc:
        if isinstance(exc, KeyboardInterrupt) and _may_be_ctrl_c():
            raise
        raise _failure(exc) from exc


async def call_guarded(callback: Callable[..., Any], *arguments: Any) -> Any:
    """Call an async or plain callable within `guarded()`; returns its result.

    Raises TypeError for a generator, whose code would not run.
    """
    with guarded():
        answer = callback(*arguments)
        if inspect.isawaitable(answer):
            return await answer
        if isinstance(answer, types.GeneratorType | types.AsyncGeneratorType):
            raise TypeError(f"{_callable_name(callback)} {_IS_GENERATOR}")
        return answer


def check_callable(callback: object, what: str, *arguments: int) -> None:
    """Raises TypeError unless it can be called, with one of these numbers of arguments if given.

    A generator function is refused: calling it would not run its code. `what` names it in errors,
    as in `a handler`.
    """
    if not callable(callback):
        raise TypeError(f"{what} is a callable, not of type {type(callback).__name__}")
    for code in _code_of(callback):
        if inspect.isgeneratorfunction(code) or inspect.isasyncgenfunction(code):
            raise TypeError(f"{what} cannot be {_callable_name(callback)}, which {_IS_GENERATOR}")
    signature = _signature(callback)
    if signature is None or not arguments or any(_fits(signature, number) for number in arguments):
        return
    allowed = " or ".join("one argument" if n == 1 else f"{n or 'no'} arguments" for n in arguments)
    shown = f"{_callable_name(callback)}{signature}"
    raise TypeError(f"{what} is called with {allowed}, which {shown} does not take")


def check_not_async(callback: object, what: str) -> None:
    """Raises TypeError for an async function as a callback that nobody awaits."""
    for code in _code_of(callback):
        if inspect.iscoroutinefunction(code):
            raise TypeError(f"{what} is a plain function: nothing awaits an async one")


def takes_context(handler: Callable[..., Any]) -> bool:
    """Whether a handler takes a second argument: its context, or its message.

    It does if it has a second parameter. One with a default must have the name `context` or
    `message`, or the type of one: `lambda event, number=number: …` takes only the event. Raises
    TypeError for what cannot be a handler.
    """
    check_callable(handler, "a handler", 1, 2)
    signature = _signature(handler)
    if signature is None:
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    second = [each for each in signature.parameters.values() if each.kind in positional][1:2]
    if not second or not _fits(signature, 2):
        return False
    if second[0].default is second[0].empty:
        return True
    kind = str(second[0].annotation)
    return second[0].name in {"context", "message"} or any(name in kind for name in _CONTEXTS)


async def call_apart(callback: Callable[..., Any], *arguments: Any) -> Any:
    """Like `call_guarded`, but in a task of its own, which is cancelled when the caller is.

    So the callback cannot cancel the caller's task, nor leave it with a cancellation that counts.
    """
    work = start_waited(call_guarded(callback, *arguments))
    with guarded():
        return await work


def start_waited(work: Coroutine[Any, Any, T], name: str | None = None) -> "asyncio.Task[T]":
    """Run `work` in a task of its own that the current task is going to wait for.

    What the work waits for must not include its callers, or both would hang: `calling_tasks` says
    which those are.
    """
    token = _waiting.set(calling_tasks())
    try:
        return asyncio.create_task(work, name=name)
    finally:
        _waiting.reset(token)


def calling_tasks() -> "frozenset[asyncio.Task[Any]]":
    """The current task, and the tasks that wait for it."""
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


def advice_on(exc: BaseException) -> str:
    """What to add to the log line about a listener or handler that raised: nothing, or a remedy.

    There is one for blocking code that refuses to block an event loop: our own, or Django's ORM.
    """
    cause = only_cause(exc)
    if isinstance(cause, BusStateError):
        return _BLOCKED if cause.would_block else ""
    return _BLOCKED if type_name(cause).endswith(".SynchronousOnlyOperation") else ""


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


def printable(text: str, keep: str = "") -> str:
    r"""Replace control and invisible characters by escapes, such as `\x1b` or `\u202e`.

    Text that others wrote could otherwise move a terminal's cursor, hide text or reverse it. These
    are the C0 and C1 controls, the marks that change the direction of text, and everything else
    that is not printable, except for the characters in `keep`.
    """

    def shown(found: re.Match[str]) -> str:
        char = found[0]
        return char if char in keep or is_visible(char) else char.encode("unicode_escape").decode()

    return _SUSPECT.sub(shown, text)


def is_visible(char: str) -> bool:
    """Whether a terminal shows the character, and only that: a glyph or a space."""
    return char.isprintable() or unicodedata.category(char) == "Zs"


def valid_text(text: str, limit: int | None = None) -> str:
    """The text with characters that UTF-8 cannot encode escaped, cut to `limit` characters."""
    if limit is not None and len(text) > limit:
        text = f"{text[: limit - 1]}…"
    return text.encode("utf-8", "backslashreplace").decode()


def _code_of(callback: object) -> tuple[object, object]:
    """The functions that a call may run: itself, or its type's method."""
    return callback, inspect.getattr_static(type(callback), "__call__", None)


def _signature(callback: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(callback)
    except ValueError:  # some built-in functions have no signature
        return None


def _fits(signature: inspect.Signature, number: int) -> bool:
    try:
        signature.bind(*(None,) * number)
    except TypeError:
        return False
    return True


def _callable_name(callback: object) -> str:
    return getattr(callback, "__qualname__", None) or type(callback).__qualname__


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


def _failure(exc: BaseException) -> CallbackFailed:
    return CallbackFailed(f"the application's code raised {type_name(exc)}")


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
