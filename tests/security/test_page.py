"""docs/security.md: every defence names tests, and every test that is named exists."""

import re
from pathlib import Path

import pytest

from tests.named_tests import NAMED, missing

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
ATTACKERS = re.compile(r"^## (A|Somebody) .+$", re.MULTILINE)
TOPICS = (
    "hijacking", "origin", "rebinding", "forgery", "framing", "kid", "jku", "revocation",
    "constant time", "subject injection", "presence", "replay", "slowloris", "tls handshake",
    "decompression", "forwarded", "smuggling", "quarantine", "redirects", "ssrf", "c1",
    "secrets", "sbom", "cve",
)  # fmt: skip


def sections():
    """The sections about attackers, by their titles."""
    parts = re.split(r"^## (.+)$", PAGE, flags=re.MULTILINE)[1:]
    titles = zip(parts[::2], parts[1::2], strict=True)
    return {title: text for title, text in titles if ATTACKERS.match(f"## {title}")}


def defences():
    for title, text in sections().items():
        for entry in re.split(r"\n(?=\*\*)", text)[1:]:
            yield pytest.param(entry, id=f"{title}: {entry[2:40].partition('.')[0]}")


@pytest.mark.parametrize("entry", list(defences()))
def test_defence_has_tests_and_all_of_them_exist(entry):
    _, found, tests = entry.partition("\\\nTests: ")
    assert found, "an entry ends with its tests"
    assert NAMED.search(tests)
    assert tests.count("::") == len(NAMED.findall(tests)), "each is `path::name`"
    assert missing(tests) == []


def test_missing_test_would_be_found():
    assert missing("`tests/security/test_page.py::test_that_nobody_wrote`")
    assert missing("`tests/security/test_nowhere.py::test_missing_test_would_be_found`")
    assert not missing("`tests/security/test_page.py::test_missing_test_would_be_found`")


def test_every_attacker_in_the_contents_has_a_section():
    contents = PAGE.partition("**By attacker**")[2].partition("**For operators**")[0]
    linked = re.findall(r"\(#([a-z-]+)\)", contents)
    assert linked == [title.lower().replace(" ", "-") for title in sections()]
    assert len(linked) == 8


def test_no_topic_is_lost():
    text = PAGE.lower()
    assert [topic for topic in TOPICS if topic not in text] == []


def test_files_that_the_page_links_to_are_there():
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", PAGE)
    assert len(links) > 8
    assert [each for each in links if not (ROOT / "docs" / each).is_file()] == []


def test_policy_says_how_to_report_and_which_versions_get_fixes():
    policy = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert "## How to report a vulnerability" in policy
    assert "## Supported versions" in policy
    assert "(../SECURITY.md)" in PAGE
