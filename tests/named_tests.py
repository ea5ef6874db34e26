"""Tests that pages and lists name, as `path::name`, and whether they exist."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAMED = re.compile(r"`(tests/[^`:]+\.py)::([^`]+)`")
"""A test that a page names."""


@cache
def names_in(path: str) -> frozenset[str]:
    """The names of the tests of a file, those of classes too."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    names = (node.name for node in ast.walk(tree) if isinstance(node, functions))
    return frozenset(name for name in names if name.startswith("test_"))


def exists(path: str, name: str) -> bool:
    """Whether the file has a test of that name."""
    return (ROOT / path).is_file() and name in names_in(path)


def missing(text: str) -> list[str]:
    """The tests that a text names and that do not exist."""
    return [f"{path}::{name}" for path, name in NAMED.findall(text) if not exists(path, name)]
