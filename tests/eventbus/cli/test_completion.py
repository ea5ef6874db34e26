"""What a shell is told when it asks how a word goes on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("words", "expected"),
    [("eventbus broad", {"broadcast"}), ("eventbus broadcast p", {"ping"})],
)
def test_shell_completes_groups_and_commands(words, expected):
    command = Path(sys.executable).parent / "eventbus"
    shown = subprocess.run(
        [command],
        env={**os.environ, "_EVENTBUS_COMPLETE": "complete_bash", "COMP_WORDS": words,
             "COMP_CWORD": str(len(words.split()) - 1)},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert set(shown.stdout.split()) == expected, shown.stderr
