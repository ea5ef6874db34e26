"""What a user's handler takes."""

import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["takes_context"]


def takes_context(handler: Callable[..., Any]) -> bool:
    """Whether a handler has a second parameter, for the context. Raises TypeError."""
    if not callable(handler):
        raise TypeError(f"a handler is a callable, not of type {type(handler).__name__}")
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(handler).parameters
    except ValueError:  # some built-in functions have none to be known
        return False
    wanted = [
        parameter
        for parameter in parameters.values()
        if parameter.kind in positional and parameter.default is parameter.empty
    ]
    return len(wanted) > 1
