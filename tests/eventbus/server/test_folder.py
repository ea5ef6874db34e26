"""The folder of local data, and what git sees of it."""

import subprocess
from pathlib import Path

import pytest

from eventbus.server import LOCAL, NatsServer, make_local_folder


def test_git_ignores_the_folder(tmp_path):
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    make_local_folder(tmp_path / LOCAL / "nats")
    (tmp_path / LOCAL / "dev-secret").write_text("secret")
    status = ["git", "status", "--porcelain", "--untracked-files=all"]
    shown = subprocess.run(status, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert shown.stdout == ""


def test_gitignore_of_the_user_is_kept(tmp_path):
    (tmp_path / LOCAL).mkdir()
    own = tmp_path / LOCAL / ".gitignore"
    own.write_text("nats\n")
    make_local_folder(tmp_path / LOCAL)
    assert own.read_text() == "nats\n"


def test_other_folders_get_no_gitignore(tmp_path):
    make_local_folder(tmp_path / "data" / "nats")
    assert list((tmp_path / "data" / "nats").iterdir()) == []
    assert not (tmp_path / "data" / ".gitignore").exists()


@pytest.mark.parametrize("relative", [True, False])
async def test_embedded_server_makes_it(relative, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path(LOCAL) if relative else tmp_path / LOCAL
    async with NatsServer(folder / "nats"):
        assert (tmp_path / LOCAL / ".gitignore").read_text().endswith("\n*\n")
