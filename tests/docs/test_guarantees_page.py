"""docs/guarantees.md: every promise names tests, and every test that is named exists."""

from pathlib import Path

import pytest

from tests.named_tests import NAMED, missing

PAGE = (Path(__file__).parents[2] / "docs" / "guarantees.md").read_text(encoding="utf-8")
PROMISES = PAGE.partition("## What is promised")[2].partition("\n## ")[0].split("\n### ")[1:]


def rows(promise: str) -> list[str]:
    return [line for line in promise.splitlines() if line.startswith("| ")][1:]


@pytest.mark.parametrize("promise", PROMISES, ids=lambda text: text.partition("\n")[0])
def test_every_fault_has_tests_and_all_of_them_exist(promise):
    assert rows(promise)
    assert [row for row in rows(promise) if not NAMED.search(row)] == []
    assert promise.count("::") == len(NAMED.findall(promise)), "each is `path::name`"
    assert missing(promise) == []


def test_page_has_every_promise():
    assert len(PROMISES) == 8
