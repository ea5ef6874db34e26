"""Pages of other origins: which settings are allowed, and what refused pages and the log read."""

import logging

import pytest

from eventbus.config import Settings
from eventbus.environment import load
from eventbus.errors import ConfigError
from eventbus_edge.access.hosts import Hosts, Origins
from eventbus_edge.app import create_app
from eventbus_edge.config import EdgeSettings
from eventbus_edge.problem import Problem

OWN = "edge.example"
HOSTS = Hosts([OWN])


@pytest.fixture
def now():
    return [5.0]


@pytest.fixture
def refuse(caplog, now):
    caplog.set_level(logging.WARNING, "eventbus_edge.access.hosts")
    origins = Origins(("https://app.example",), HOSTS, clock=lambda: now[0])

    def ask(origin):
        with pytest.raises(Problem) as refused:
            origins.require(origin, OWN)
        assert refused.value.code == "forbidden"
        return [record.getMessage() for record in caplog.records]

    return ask


def test_many_refused_origins_are_one_line_until_some_time_has_passed(refuse, now):
    [first] = refuse("https://other.example")
    assert "refused a request from origin 'https://other.example'" in first
    assert "CORS_ALLOWED_ORIGINS" in first
    for number in range(100):
        assert refuse(f"https://{number}.example") == [first]
    now[0] += 10.0
    _, second = refuse("https://last.example")
    assert "refused a request from origin 'https://last.example'" in second
    assert second.endswith("(100 more in the meantime)")


def test_an_origin_in_the_log_is_short_and_cannot_break_a_line(refuse):
    [message] = refuse("x\n\x1b[2J\udc80é" + "y" * 10_000)
    assert message.isascii()
    assert message.isprintable()
    assert len(message) < 400


@pytest.mark.parametrize("origin", [None, "https://app.example", f"https://{OWN}"])
def test_allowed_origin_is_not_logged(origin, caplog):
    Origins(("https://app.example",), HOSTS).require(origin, OWN)
    assert not caplog.records


@pytest.mark.parametrize(
    ("origin", "host", "expected"),
    [
        ("http://localhost:8080", "localhost:8080", True),
        ("http://LOCALHOST:8080", "Localhost.:8080", False),  # other names to a browser
        ("http://127.0.0.1:8080", "127.0.0.1:8080", True),
        ("http://[::1]:8080", "[::1]:8080", True),
        ("http://192.168.1.5:8080", "192.168.1.5:8080", True),
        ("https://edge.example", "edge.example", True),
        ("http://evil.example:8080", "evil.example:8080", False),
        ("http://evil.example:8080", "localhost:8080", False),
        ("http://localhost:8080", "evil.example:8080", False),
        ("http://localhost.evil.example", "localhost.evil.example", False),
        ("https://app.example", "evil.example", True),
    ],
)
def test_the_origin_of_a_foreign_host_is_not_the_nodes_own(origin, host, expected):
    assert Origins(("https://app.example",), HOSTS).allows(origin, host) is expected


@pytest.mark.parametrize("allowed", [("*",), ("http://any.example:8080",), ("any.example:8080",)])
def test_a_host_whose_pages_are_allowed_is_allowed_without_an_origin(allowed):
    Origins(allowed, Hosts()).require_host("any.example:8080")
    with pytest.raises(Problem):
        Origins(("https://app.example",), Hosts()).require_host("any.example:8080")


@pytest.mark.parametrize(
    "text",
    [
        "https://app.example.com/",
        "https://app.example.com/path",
        '"https://app.example.com"',
        "'https://app.example.com'",
        '["https://app.example.com"]',
        '["https://a.example.com", "https://b.example.com"]',
        "https://a.example.com https://b.example.com",
        "https://a.example.com;https://b.example.com",
        "https://*",
        "https://*example.com",
        "https://app.*.com",
        "https://*.*.example.com",
        "https://*.192.168.1.1",
        "https://*.[::1]",
        "http://localhost:5173:*",
        "http://localhost:**",
        "http://localhost:",
        "https://app.example.com?x=1",
        "http*://app.example.com",
        "//app.example.com",
        "https://",
        "https://bücher.example",
        "**",
        ".example.com",
        "https://.example.com",
        "https://example..com",
        "https://*..example.com",
        "*.1.2.3.4",
        "https://999.1.1.1",
        "1.2.3",
        "http://1.2.3.4.",
        "http://01.2.3.4",
        "http://app.0x7f:*",
        "http://[::1::2]",
        "http://[0:0::1]",
        "http://[::ffff:1.2.3.4]",
        ".",
        "..",
        "_",
        "https://-_-",
    ],
)
def test_an_entry_that_no_origin_can_match_stops_the_start_and_names_what_is_allowed(text):
    settings = load(EdgeSettings, {"CORS_ALLOWED_ORIGINS": text})
    with pytest.raises(ConfigError, match="CORS_ALLOWED_ORIGINS has") as refused:
        create_app(settings, Settings(driver="memory"))
    assert refused.value.variable == "CORS_ALLOWED_ORIGINS"
    assert "allowed: scheme://host[:port]" in str(refused.value)


@pytest.mark.parametrize("start", ["", "https://"])
def test_all_subdomains_in_the_way_of_another_program_are_explained(start):
    with pytest.raises(ConfigError, match=rf"write '{start}\*\.example\.com:8443'"):
        Origins((f"{start}.example.com:8443",), HOSTS)


def test_every_form_that_the_error_allows_is_allowed():
    text = (
        "https://app.example.com, https://*.example.com,http://localhost:*, app.example.com,"
        "app.example.com:3000,*.example.com,*,null,capacitor://localhost,http://[::1]:8080,"
        "https://example.com.,http://192.168.1.5:8080,my_host,*.0x.example,http://[::ffff:102:304]"
    )
    create_app(load(EdgeSettings, {"CORS_ALLOWED_ORIGINS": text}), Settings(driver="memory"))


def test_a_refused_page_reads_its_origin_and_the_remedy():
    with pytest.raises(Problem) as refused:
        Origins((), HOSTS).require("https://other.example\n", OWN)
    assert "'https://other.example\\n' is not allowed" in refused.value.detail
    assert "CORS_ALLOWED_ORIGINS" in refused.value.detail
