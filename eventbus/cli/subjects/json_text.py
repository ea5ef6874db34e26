"""JSON on one line, coloured by type if the terminal has colours."""

import json
import re
from typing import Final

from rich.text import Text

from eventbus.cli.terminal import json_safe

__all__ = ["shown_json"]

_TOKEN: Final = re.compile(
    r'(?P<string>"(?:[^"\\]|\\.)*")'
    r"|(?P<yellow>-?\d[\d.eE+-]*)|(?P<magenta>true|false|null)|(?P<mark>[\[\]{}:,])"
)
_MARKS: Final = {",": ", ", ":": ": "}


def shown_json(raw: str) -> Text:
    """A valid JSON text on one line, with control characters escaped for terminals.

    It is not decoded as a whole: numbers of any size, and values that are nested to any depth, are
    shown as they are.
    """
    text = Text()
    for found in _TOKEN.finditer(raw):
        match found.lastgroup:
            case "string":
                is_key = raw[found.end() : found.end() + 32].lstrip().startswith(":")
                shown = json.dumps(json.loads(found[0]), ensure_ascii=False)
                text.append(json_safe(shown), style="blue" if is_key else "green")
            case "mark":
                text.append(_MARKS.get(found[0], found[0]))
            case style:
                text.append(found[0], style=style)
    return text
