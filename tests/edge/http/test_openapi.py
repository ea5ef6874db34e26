"""The description of the API: valid, complete, and true."""

import re

import aiohttp
import jsonschema_rs
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from eventbus_edge.http.api import (
    ROUTES,
    document,
)


def test_the_document_is_valid_openapi_3_1():
    described = document()
    assert described["openapi"].startswith("3.1.")
    assert [error.message for error in OpenAPIV31SpecValidator(described).iter_errors()] == []


def test_the_validator_would_notice_a_fault():
    described = document()
    del described["info"]["version"]
    assert list(OpenAPIV31SpecValidator(described).iter_errors())


def test_every_route_is_described_with_what_it_takes_and_answers():
    described = document()
    for route in ROUTES:
        operation = described["paths"][route.path][route.method.lower()]
        assert operation["summary"]
        answer = operation["responses"]["200"]["content"]["application/json"]["schema"]
        assert answer["$ref"].endswith("/" + route.answer.__name__)
        assert ("requestBody" in operation) == (route.body is not None)
        for status in ("400", "401", "403", "500"):
            assert "application/problem+json" in operation["responses"][status]["content"]
        path = {p["name"] for p in operation["parameters"] if p["in"] == "path"}
        assert path == set(re.findall(r"{(\w+)}", route.path))
    names = [
        op["operationId"] for methods in described["paths"].values() for op in methods.values()
    ]
    assert len(set(names)) == len(names)


def test_the_types_fields_and_limits_are_those_that_validate():
    described = document()
    schemas = described["components"]["schemas"]
    publish = schemas["Publish"]
    assert set(publish["properties"]) == {
        "channel", "channels", "event", "data", "except", "volatile",
    }  # fmt: skip
    assert set(publish["required"]) == {"event", "data"}
    assert publish["additionalProperties"] is False
    history = described["paths"]["/api/broadcast/channels/{name}/history"]["get"]["parameters"]
    limit = next(p for p in history if p["name"] == "limit")
    assert (limit["schema"]["minimum"], limit["schema"]["maximum"]) == (1, 1000)
    assert limit["required"] is False


@pytest.mark.parametrize("key", ["a-key", ""])
async def test_the_document_needs_access_to_the_api(start_edge, bus, key):
    edge = await start_edge(bus, api_key=key)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with aiohttp.ClientSession() as http:
        async with http.get(edge.url + "/api/openapi.json", headers=headers) as response:
            assert (response.status, await response.json()) == (200, document())
        async with http.get(edge.url + "/api/openapi.json") as response:
            assert response.status == (401 if key else 200)


def schemas_by_name(described):
    """The schemas of all strings that have rules: of parameters by name, of bodies by field."""
    for methods in described["paths"].values():
        for operation in methods.values():
            for parameter in operation["parameters"]:
                yield parameter["name"], parameter["schema"]
    for field, schema in described["components"]["schemas"]["Publish"]["properties"].items():
        yield from ((field, each) for each in schema.get("anyOf", [schema]))


VALID = {
    "name": ["general", "user.42", "a_=@,;-b", "user.auth0~7c1", "x" * 200],
    "channel": ["general", "user.42", "user.ada@example~2ecom", "x" * 200],
    "event": ["order.shipped", "client-typing", "é", "x" * 200, "pongs", "a eb:"],
    "except": ["c1", "~" * 200],
    "id": ["a", "A_-9", "x" * 100],
    "Idempotency-Key": ["a", "é", "x" * 255],
    "pattern": [">", "orders.*", "x" * 200],
}
INVALID = {
    "name": ["", "a~", "a~7C", "~zz", ".", "a.", "a..b", "a b", "é", "a*", "a\n", "x" * 201],
    "channel": ["", "a~7", "~", ".a", "a/b", "a\n", "x" * 201],
    "event": ["", "pong", "eb:x", "pusher:x", "pusher_internal:x", "a\n", "a\x7f", "x" * 201],
    "except": ["", "a b", "é", "a\n", "~" * 201],
    "id": ["", "a b", "a.b", "a\n", "x" * 101],
    "Idempotency-Key": ["", "x" * 256],
    "pattern": ["", "x" * 301],
}


@pytest.mark.parametrize("name", VALID)
def test_the_rules_of_names_are_described_as_they_are_enforced(name):
    schemas = [schema for key, schema in schemas_by_name(document()) if key == name]
    strings = [schema for schema in schemas if schema.get("type") == "string"]
    assert strings
    for schema in strings:
        if "minLength" not in schema and "pattern" not in schema:
            continue
        check = jsonschema_rs.Draft202012Validator(schema)
        assert [text for text in VALID[name] if not check.is_valid(text)] == []
        assert [text for text in INVALID[name] if check.is_valid(text)] == []
    assert any("pattern" in schema or "maxLength" in schema for schema in strings)


@pytest.mark.parametrize("field", ["channel", "event", "except"])
async def test_a_body_is_refused_exactly_where_its_description_refuses_it(start_edge, bus, field):
    edge = await start_edge(bus)
    async with aiohttp.ClientSession() as http:
        for text in VALID[field] + INVALID[field]:
            body = {"channel": "general", "event": "e", "data": 1, field: text}
            async with http.post(edge.url + "/api/broadcast/events", json=body) as response:
                assert response.status == (200 if text in VALID[field] else 400), repr(text)


def test_every_status_that_any_request_may_get_is_described():
    for methods in document()["paths"].values():
        for operation in methods.values():
            assert {"400", "401", "403", "414", "417", "429", "431", "500"} <= set(
                operation["responses"]
            )
