"""Decoders raise only documented errors, for inputs from fuzzing and for mutated ones."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tests.fuzz.targets import (
    CORPUS,
    EXEMPT,
    MOST_FILES,
    MOST_KEPT_BYTES,
    TARGETS,
    kept,
    name_of,
)

ROOT = Path(__file__).parents[2]
DECODES = re.compile(
    r"\b(?:json_decoder|decode_json|b64decode|urlsafe_b64decode|fromisoformat|parse_qsl|PyJWS|PyJWK"
    r"|parse_extension|json\.loads|(?:json|msgpack|toml)\.(?:decode|Decoder))\("
)
"""Calls that make a module a decoder."""

pytestmark = [
    pytest.mark.xdist_group("fuzz"),  # one worker imports it all
    pytest.mark.usefixtures("own_current_buses"),
    # What targets refuse, and how a node is left behind, is not this process's business.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.mark.parametrize("name", TARGETS)
def test_inputs_from_fuzzing_raise_only_documented_errors(name):
    each = TARGETS[name]
    for data in (*each.seeds, *kept(each)):
        each.run(data)


@st.composite
def inputs(draw, seeds):
    """Random bytes, JSON, and valid inputs that were changed in a few places."""
    kind = draw(st.sampled_from(["changed", "changed", "json", "bytes"]))
    if kind == "bytes":
        return draw(st.binary(max_size=200))
    if kind == "json":
        numbers = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
        values = st.none() | st.booleans() | numbers | st.text(max_size=20)
        tree = st.recursive(
            values,
            lambda inner: (
                st.lists(inner, max_size=4)
                | st.dictionaries(st.text(max_size=8), inner, max_size=4)
            ),
            max_leaves=10,
        )
        return json.dumps(draw(tree)).encode()
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.integers(0, 8)))
        data[at:end] = draw(st.binary(max_size=8) | st.sampled_from(PIECES))
    return bytes(data)


PIECES = [
    b"\0", b"\r\n", b'"', b"\\ud800", b"\xff", b"[" * 150, b"-1", b"1e400", b"null", b"{}",
    b"18446744073709551616", b"9" * 5000, "\u2028\N{ARABIC-INDIC DIGIT ONE}".encode(),
]  # fmt: skip


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_inputs_raise_only_documented_errors(name):
    each = TARGETS[name]

    @settings(
        max_examples=30 if name == "connection" else 150,
        suppress_health_check=list(HealthCheck),
        database=None,
        derandomize=True,  # scripts/fuzz looks for new inputs
    )
    @given(inputs(each.seeds))
    def attempt(data):
        each.run(data)

    attempt()


@pytest.mark.server  # it starts a program
@pytest.mark.timeout(600)
def test_coverage_guided_fuzzing_finds_nothing(tmp_path):
    pytest.importorskip("atheris", reason="there is no wheel for this platform")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.fuzz",
            "--runs",
            "600",
            "--seed",
            "1",
            "--out",
            str(tmp_path),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("nothing found") == len(TARGETS)


def test_decoder_without_a_target_has_a_reason():
    covered = {module for each in TARGETS.values() for module in each.modules}
    decoders = set()
    for folder, top in ((ROOT, "eventbus"), (ROOT / "edge", "eventbus_edge")):
        for path in (folder / top).rglob("*.py"):
            if DECODES.search(path.read_text(encoding="utf-8")):
                module = ".".join(path.relative_to(folder).with_suffix("").parts)
                decoders.add(module.removesuffix(".__init__"))
    assert decoders - covered - EXEMPT.keys() == set(), "give it a target in tests/fuzz"
    assert EXEMPT.keys() - decoders == set()
    missing = {module for module in covered if importlib.util.find_spec(module) is None}
    assert missing == set()


def test_corpora_are_small_and_without_duplicates():
    assert {path.name for path in CORPUS.iterdir()} <= TARGETS.keys()
    for each in TARGETS.values():
        files = list((CORPUS / each.name).glob("*"))
        assert len(files) <= MOST_FILES, each.name
        for path in files:
            data = path.read_bytes()
            assert len(data) <= MOST_KEPT_BYTES
            assert path.name == name_of(data)
