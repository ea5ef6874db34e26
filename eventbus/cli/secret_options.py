"""Options with a secret: from a variable, or from the file that another variable names."""

from typing import Any

import typer

from eventbus.cli.output import fail
from eventbus.environment import read_secret
from eventbus.errors import ConfigError

__all__ = ["secret_of_option"]


def secret_of_option(ctx: typer.Context, param: Any, value: str) -> str:
    """The callback of such an option: reads the file of its `envvar`, unless a value is given.

    Exits if the settings are not valid.
    """
    source = ctx.get_parameter_source(param.name)
    if ctx.resilient_parsing or (source is not None and source.name == "COMMANDLINE"):
        return value
    try:
        return read_secret(param.envvar)
    except ConfigError as exc:
        fail(str(exc), code=2)
