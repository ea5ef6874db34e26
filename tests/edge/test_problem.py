"""Problem JSON: its shape, its statuses, and details that cannot break it."""

import json

import pytest

from eventbus_edge.problem import (
    STATUS,
    Problem,
    bad_token,
    retry_after,
)


def test_body_is_problem_json_with_a_code():
    problem = Problem("invalid_channel", "'a b' is not a channel name")
    assert json.loads(problem.body()) == {
        "type": "about:blank",
        "title": "Bad Request",
        "status": 400,
        "detail": "'a b' is not a channel name",
        "code": "invalid_channel",
    }
    assert str(problem) == "'a b' is not a channel name"


@pytest.mark.parametrize("code", STATUS)
def test_every_code_has_an_error_status_with_a_phrase(code):
    problem = Problem(code, "")
    assert 400 <= problem.status < 600
    assert problem.details().title != "Error"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("bad_request", 400),
        ("invalid_channel", 400),
        ("unauthorized", 401),
        ("token_expired", 401),
        ("forbidden", 403),
        ("payload_too_large", 413),
        ("rate_limited", 429),
        ("unavailable", 503),
    ],
)
def test_codes_of_the_protocol_have_their_status(code, status):
    assert Problem(code, "").status == status


def test_status_can_be_given_where_a_code_has_several():
    problem = Problem("limit_exceeded", "full", status=429, headers=retry_after(10))
    assert (problem.status, problem.headers) == (429, {"Retry-After": "10"})
    assert problem.details().title == "Too Many Requests"
    assert Problem("internal", "", status=599).details().title == "Error"


def test_unknown_code_without_a_status_is_an_error():
    with pytest.raises(KeyError):
        Problem("nonsense", "")


@pytest.mark.parametrize("code", ["unauthorized", "token_expired"])
def test_401_always_has_a_challenge(code):
    assert Problem(code, "").headers == {"WWW-Authenticate": "Bearer"}
    assert bad_token(code, "").headers == {"WWW-Authenticate": 'Bearer error="invalid_token"'}


def test_other_statuses_have_no_challenge():
    assert Problem("forbidden", "").headers == {}


@pytest.mark.parametrize("seconds", [(-1, "1"), (0, "1"), (0.2, "1"), (1.1, "2"), (30, "30")])
def test_retry_after_is_whole_seconds_and_never_at_once(seconds):
    given, expected = seconds
    assert retry_after(given) == {"Retry-After": expected}


@pytest.mark.parametrize("detail", ["\udcff", "\0", "é\u2028", '"\\', "\r\nSet-Cookie: a=b"])
def test_any_text_makes_a_body_and_no_header(detail):
    problem = Problem("unauthorized", detail)
    assert isinstance(json.loads(problem.body())["detail"], str)
    assert detail not in str(problem.headers)
