"""Generates the reference of all commands for docs/cli.md, from their declarations."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, Final

__all__ = ["reference"]

_EXAMPLE: Final = "Example: "
_LEFT_OUT: Final = {"help", "install_completion", "show_completion"}


def reference(commands: Mapping[str, Any], name: str = "eventbus", level: int = 2) -> Iterator[str]:
    """Yield lines of Markdown: each group with its commands, their options and an example."""
    for key, command in commands.items():
        if not hasattr(command, "commands"):
            yield from _command(command, f"{name} {key}", level)
        elif not command.hidden:
            yield f"{'#' * level} {name} {key}"
            yield ""
            yield _text(command.help)
            yield ""
            yield from reference(command.commands, f"{name} {key}", level + 1)


def _command(command: Any, name: str, level: int) -> Iterator[str]:
    if command.hidden:
        return
    text, _, example = (command.help or "").partition(_EXAMPLE)
    params = [param for param in command.params if param.name not in _LEFT_OUT]
    yield f"{'#' * level} {name}"
    yield ""
    yield _text(text)
    yield ""
    yield "```console"
    yield f"$ {' '.join(example.split()) or name}"
    yield "```"
    yield ""
    if params:
        yield "| argument or option | default | description |"
        yield "|---|---|---|"
        for param in params:
            yield f"| {_names(param)} | {_default(param)} | {_cell(param.help or '')} |"
        yield ""


def _names(param: Any) -> str:
    if param.param_type_name == "argument":
        shown = param.metavar or param.name.upper()
        return f"`{shown}`" if param.required else f"`[{shown}]`"
    return ", ".join(f"`{opt}`" for opt in (*param.opts, *param.secondary_opts))


def _default(param: Any) -> str:
    default = param.default
    if param.required:
        return "required"
    if default in (None, "", False) or callable(default) or isinstance(default, list | tuple):
        return f"${param.envvar}" if param.envvar else ""
    return f"`{getattr(default, 'value', default)}`"


def _text(text: str | None) -> str:
    paragraphs = inspect.cleandoc(text or "").split("\n\n")
    return "\n\n".join(_cell(" ".join(each.split())) for each in paragraphs if each.strip())


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "\\<").replace("*", "\\*")
