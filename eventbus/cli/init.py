"""`eventbus init`: writes a small application of a framework."""

import enum
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Final

import typer

from eventbus.cli.output import fail, say

__all__ = ["init"]

_SUFFIX: Final = ".tmpl"
_PAGE: Final = "page.html.tmpl"


class Framework(enum.StrEnum):
    """The frameworks for which there is a template."""

    FASTAPI = "fastapi"
    DJANGO = "django"
    FLASK = "flask"


_START: Final = {
    Framework.FASTAPI: ("uvicorn app:app --reload",),
    Framework.FLASK: ("flask run --port 8000",),
    Framework.DJANGO: ("python manage.py migrate", "python manage.py runserver"),
}


def init(
    framework: Annotated[Framework, typer.Argument(help="The framework.")],
    folder: Annotated[
        Path, typer.Argument(help="Where to write it.", show_default="this folder")
    ] = Path(),
) -> None:
    """Write a small application of FastAPI, Django or Flask.

    It has an event, a route, a live page, a token endpoint and tests, and runs beside
    `eventbus dev` at once. Nothing is overwritten.

    Example: eventbus init fastapi board
    """
    templates = files("eventbus.cli") / "templates"
    contents = dict(_read(templates / framework.value))
    contents["page.html"] = (templates / _PAGE).read_text("utf-8")
    if taken := sorted(name for name in contents if (folder / name).exists()):
        fail(f"{folder / taken[0]} exists already, and nothing was written: choose another folder")
    try:
        for name, content in contents.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:
                file.write(content)
    except OSError as exc:
        fail(f"{exc.filename}: {exc.strerror}")
    say(f"wrote {', '.join(sorted(contents))} to {folder.absolute()}")
    say("\nNext:")
    if folder != Path():
        say(f"  cd {folder}")
    for command in (
        "pip install -r requirements.txt",
        "pytest",
        "eventbus dev                # in a terminal of its own",
        *_START[framework],
    ):
        say(f"  {command}")
    say("and open http://localhost:8000/ in two tabs")


def _read(folder: Traversable, prefix: str = "") -> list[tuple[str, str]]:
    """The files of a template, by their names in the application."""
    found: list[tuple[str, str]] = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _read(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(_SUFFIX):
            found.append((prefix + entry.name.removesuffix(_SUFFIX), entry.read_text("utf-8")))
    return found
