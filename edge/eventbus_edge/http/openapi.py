"""Describes the HTTP API as OpenAPI 3.1, from the same types that validate it. Pure.

https://spec.openapis.org/oas/v3.1.0: its schemas are JSON Schema 2020-12, as msgspec writes.
"""

import re
from collections.abc import (
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from http.client import responses
from types import MappingProxyType
from typing import (
    Any,
    Final,
    Generic,
    NamedTuple,
    TypeVar,
)

import msgspec

from eventbus_edge.problem import (
    PROBLEM_JSON,
    ProblemDetails,
)

__all__ = ["Parameter", "Route", "describe"]


Q = TypeVar("Q")
B = TypeVar("B")

_REF: Final = "#/components/schemas/{name}"
_ALWAYS: Final = (400, 401, 403, 414, 417, 429, 431, 500)
_IN_PATH: Final = re.compile(r"\{(\w+)\}")


class Parameter(NamedTuple):
    """A header that a route reads."""

    name: str
    description: str
    type: Any = str


class Route(NamedTuple, Generic[Q, B]):
    """One operation: its path, its request and response types, and its handler."""

    method: str
    path: str
    summary: str
    handler: Callable[..., Any]
    query: type[Q]
    body: type[B] | None
    answer: type[msgspec.Struct]
    problems: tuple[int, ...] = ()
    """Error statuses, in addition to those of every route."""
    headers: tuple[Parameter, ...] = ()
    path_types: Mapping[str, Any] = MappingProxyType({})
    """The types of the path's parameters, where they are not any string."""


def describe(
    routes: Sequence[Route[Any, Any]], *, title: str, version: str, description: str
) -> dict[str, Any]:
    """The OpenAPI document of `routes`."""
    types = [ProblemDetails, *(r.answer for r in routes), *(r.body for r in routes if r.body)]
    (problem, *_), components = msgspec.json.schema_components(types, ref_template=_REF)
    paths: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, problem)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version, "description": description},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "BROADCAST_API_KEY, or a token with the role or permission "
                    "admin. If no key is configured, clients on the node's own machine need "
                    "none, except in production.",
                }
            },
        },
        "security": [{"key": []}],
    }


def _operation(route: Route[Any, Any], problem: dict[str, Any]) -> dict[str, Any]:
    answers = {
        "200": {
            "description": _first_line(route.answer),
            "content": {"application/json": {"schema": _ref(route.answer)}},
        }
    }
    for status in sorted({*_ALWAYS, *route.problems}):
        answers[str(status)] = {
            "description": responses[status],
            "content": {PROBLEM_JSON: {"schema": problem}},
        }
    operation: dict[str, Any] = {
        "operationId": route.handler.__name__.strip("_"),
        "summary": route.summary,
        "parameters": [*_in_path(route), *_in_query(route.query), *_in_header(route.headers)],
        "responses": answers,
    }
    if route.body is not None:
        content = {"application/json": {"schema": _ref(route.body)}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _ref(type_: type[Any]) -> dict[str, str]:
    return {"$ref": _REF.format(name=type_.__name__)}


def _first_line(type_: type[Any]) -> str:
    return (type_.__doc__ or type_.__name__).splitlines()[0]


def _in_path(route: Route[Any, Any]) -> Iterable[dict[str, Any]]:
    for name in _IN_PATH.findall(route.path):
        schema = _schema(route.path_types.get(name, str))
        yield {"name": name, "in": "path", "required": True, "schema": schema}


def _in_query(query: type[Any]) -> Iterable[dict[str, Any]]:
    _, components = msgspec.json.schema_components([query], ref_template=_REF)
    schema = components[query.__name__]
    for name, of_field in schema["properties"].items():
        described = dict(of_field)
        description = described.pop("description", "")
        yield {
            "name": name,
            "in": "query",
            "required": name in schema["required"],
            "description": description,
            "schema": described,
        }


def _in_header(headers: Iterable[Parameter]) -> Iterable[dict[str, Any]]:
    for name, description, type_ in headers:
        schema = _schema(type_)
        yield {"name": name, "in": "header", "description": description, "schema": schema}


def _schema(type_: Any) -> dict[str, Any]:
    (schema,), _ = msgspec.json.schema_components([type_], ref_template=_REF)
    return schema
