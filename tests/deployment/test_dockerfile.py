"""The Dockerfile, as far as it can be judged without a Docker engine."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_hadolint_reports_nothing():
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run(
        [hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False, timeout=150
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_image_runs_as_a_user_without_rights_and_passes_signals_on():
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    assert "USER 10001" in lines
    assert 'ENTRYPOINT ["eventbus"]' in lines
    assert any(line.endswith('CMD ["python", "-m", "eventbus_edge.health"]') for line in lines)


def test_image_is_what_was_installed_on_a_base_of_one_release():
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "")
    assert "ARG PYTHON=python:3.13-slim-trixie" in text.splitlines()
    build, last = text.split("\nFROM ${PYTHON}")[1:]
    assert "pip install" in build
    assert "\nCOPY --from=build /opt/eventbus /opt/eventbus\n" in last
    assert (
        re.findall(r"^(?:RUN .*(?:pip|apt)|ADD|COPY (?!--from=build)).*", last, re.MULTILINE) == []
    )


def test_secrets_and_data_do_not_enter_the_build():
    wanted = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    assert "*" in wanted
    assert not {"!compose", "!.eventbus", "!.git", "!deploy"} & set(wanted)
