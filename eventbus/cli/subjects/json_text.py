"""JSON on one line, coloured by type if the terminal has colours."""

import json
from typing import Any

from rich.text import Text

__all__ = ["shown_json"]


_KEY = "blue"
_STYLES: dict[type, str] = {str: "green", int: "yellow", float: "yellow", bool: "magenta"}


def shown_json(value: Any) -> Text:
    """A decoded JSON value as text, with control characters escaped for terminals."""
    text = Text()
    _append(text, value)
    return text


def _append(text: Text, value: Any) -> None:
    match value:
        case dict():
            text.append("{")
            for number, (key, item) in enumerate(value.items()):
                text.append(", " if number else "")
                text.append(_printable(key), style=_KEY)
                text.append(": ")
                _append(text, item)
            text.append("}")
        case list():
            text.append("[")
            for number, item in enumerate(value):
                text.append(", " if number else "")
                _append(text, item)
            text.append("]")
        case None:
            text.append("null", style="magenta")
        case _:
            text.append(_printable(value), style=_STYLES[type(value)])


def _printable(value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=False)
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in shown)
