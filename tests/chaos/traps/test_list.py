"""The list in traps.toml is complete: it names tests that exist, and all tests of traps."""

import tomllib
from pathlib import Path

import pytest

from tests.named_tests import exists, names_in

ROOT = Path(__file__).parents[3]
FOLDERS = ("tests/chaos/traps", "tests/chaos/redis")
LIST = tomllib.loads((Path(__file__).parent / "traps.toml").read_text(encoding="utf-8"))["traps"]


def missing(tests: list[str]) -> list[str]:
    """Those that do not exist."""
    return [test for test in tests if not exists(*test.split("::"))]


@pytest.mark.parametrize("trap", LIST, ids=lambda trap: trap["behaviour"][:60])
def test_trap_has_an_answer_whose_tests_exist(trap):
    assert trap.keys() == {"about", "behaviour", "answer", "tests"}
    assert trap["answer"]
    assert trap["tests"]
    assert missing(trap["tests"]) == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_test_of_a_trap_is_in_the_list(folder):
    named = {test for trap in LIST for test in trap["tests"]}
    existing = {
        f"{folder}/{path.name}::{name}"
        for path in (ROOT / folder).glob("test_*.py")
        if path.name != Path(__file__).name
        for name in names_in(f"{folder}/{path.name}")
    }
    assert existing - named == set()


@pytest.mark.parametrize("test", ["tests/no_file.py::test_any", f"{FOLDERS[0]}/test_list.py::no"])
def test_a_test_that_does_not_exist_is_found(test):
    assert missing([test]) == [test]
