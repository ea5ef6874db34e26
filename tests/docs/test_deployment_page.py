import re
import subprocess
from pathlib import Path

import pytest

from eventbus.server import find_binary

PAGE = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```nats\n(.*?)```", PAGE, re.DOTALL)


def test_page_has_the_snippets():
    assert len(SNIPPETS) == 2


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_nats_server_takes_the_snippet(snippet, tmp_path):
    config = tmp_path / "nats.conf"
    config.write_text(f"server_name: one\ncluster {{ name: eu, port: -1 }}\n{snippet}")
    done = subprocess.run(
        [find_binary(), "-t", "-c", config], capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 0, done.stderr


def test_files_that_the_page_links_to_are_there():
    docs = Path(__file__).parents[2] / "docs"
    links = re.findall(r"\]\(([^)#]+)\)", PAGE)
    assert links
    assert [link for link in links if not (docs / link).exists()] == []
