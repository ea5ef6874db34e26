"""The Dockerfile, as far as it can be judged without a Docker engine."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_hadolint_finds_nothing_to_say():
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run(
        [hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_image_runs_as_a_user_without_rights_and_passes_signals_on():
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    assert "USER 10001" in lines
    assert 'ENTRYPOINT ["eventbus"]' in lines
    assert any(line.endswith('CMD ["python", "-m", "edge.health"]') for line in lines)


def test_secrets_and_data_do_not_enter_the_build():
    wanted = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    assert "*" in wanted
    assert not {"!compose", "!.eventbus", "!.git", "!deploy"} & set(wanted)
