"""Loads an application of a test, under the name by which programs import it."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

from eventbus.events.listeners import isolated


def load_application(path: Path) -> Any:
    """The module of a file; loaded once. Its listeners are for other processes, not for this one.

    Workers find the events of a job by the name of their module, so it may not be imported by
    another name here.
    """
    name = path.stem
    if (loaded := sys.modules.get(name)) is not None:
        return loaded
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    with isolated():
        spec.loader.exec_module(module)
    return module
