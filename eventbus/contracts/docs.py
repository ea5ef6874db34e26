"""The documentation of a struct: its docstring, and the strings below its fields."""

import ast
import dataclasses
import functools
import inspect
import itertools
import textwrap
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, get_origin

__all__ = ["class_doc", "field_docs"]


def class_doc(cls: Any) -> str:
    """The class's own docstring, without inheritance; empty if it has none.

    For a parametrized generic such as `Page[Order]`, it is the docstring of `Page`.
    """
    own = vars(get_origin(cls) or cls).get("__doc__")
    is_made = dataclasses.is_dataclass(cls) or hasattr(cls, "_fields")  # or a named tuple
    if is_made and own and own.startswith(f"{cls.__name__}("):
        return ""  # the signature that Python generates in place of a docstring
    return inspect.cleandoc(own) if isinstance(own, str) else ""


@functools.lru_cache(maxsize=1024)
def field_docs(cls: Any) -> Mapping[str, str]:
    """The strings below the fields of a class and its bases, by the field's name.

    Python does not store them, so they are read from the source. Empty if it is not available.
    """
    found: dict[str, str] = {}
    for base in reversed((get_origin(cls) or cls).__mro__):
        if base.__module__ not in ("builtins", "msgspec"):
            found.update(_read(base))
    return MappingProxyType(found)


def _read(cls: type) -> Mapping[str, str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError, SyntaxError):  # created at run time, or no source
        return {}
    found = {}
    if isinstance(tree.body[0], ast.ClassDef):
        body = tree.body[0].body
        for statement, below in itertools.pairwise(body):
            match statement, below:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str() as text)),
                ):
                    found[name] = inspect.cleandoc(text)
    return found
