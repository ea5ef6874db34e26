"""How commands speak: results to stdout, what went wrong to stderr with an exit code."""

from typing import NoReturn

import typer

__all__ = ["fail"]


def fail(message: str, *, code: int = 1) -> NoReturn:
    """Say what is wrong, and end with `code`: 1 for a failure, 2 for wrong usage or settings."""
    typer.secho(f"error: {message}", fg=typer.colors.RED, err=True)
    raise typer.Exit(code)
