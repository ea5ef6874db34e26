"""The description of the API: valid, complete, and true."""

import re

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
    import aiohttp  # noqa: PLC0415 - only here

    edge = await start_edge(bus, api_key=key)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with aiohttp.ClientSession() as http:
        async with http.get(edge.url + "/api/openapi.json", headers=headers) as response:
            assert (response.status, await response.json()) == (200, document())
        async with http.get(edge.url + "/api/openapi.json") as response:
            assert response.status == (401 if key else 200)
