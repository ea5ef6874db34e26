"""Which commit is the previous version, for two versions side by side."""

import subprocess
from pathlib import Path

import pytest

from scripts.chaos_lab.versions import NoPrevious, extract_previous, previous_commit

NAME = ("-c", "user.name=a", "-c", "user.email=a@example.com")


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *NAME, "-C", str(folder), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path):
    """A repository with three versions of its files on main."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch", "main")
    for version in range(3):
        commit(folder, f"main {version}")
    return folder


def commit(folder: Path, text: str) -> str:
    for name in ("eventbus", "edge"):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "file").write_text(text)
    (folder / "pyproject.toml").write_text("")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", text)
    return git(folder, "rev-parse", "HEAD")


def test_previous_version_on_main_is_the_commit_before(repository):
    assert previous_commit(repository) == git(repository, "rev-parse", "HEAD~1")


def test_previous_version_on_a_branch_is_where_it_left_main(repository):
    left = git(repository, "rev-parse", "HEAD")
    git(repository, "switch", "--quiet", "--create", "work")
    for number in range(2):
        commit(repository, f"work {number}")
    assert previous_commit(repository) == left


def test_previous_files_are_written_and_the_repository_stays_as_it_was(repository, tmp_path):
    extracted = extract_previous(repository, tmp_path / "previous")
    assert extracted == git(repository, "rev-parse", "HEAD~1")
    assert (tmp_path / "previous" / "edge" / "file").read_text() == "main 1"
    assert git(repository, "status", "--porcelain") == ""
    assert len(git(repository, "worktree", "list").splitlines()) == 1


def test_shallow_clone_has_no_previous_version(repository, tmp_path):
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", "--depth", "1", f"file://{repository}", str(clone))
    with pytest.raises(NoPrevious, match="rev-parse"):
        previous_commit(clone)


def test_folder_without_git_has_no_previous_version(tmp_path):
    with pytest.raises(NoPrevious, match="not a git repository"):
        previous_commit(tmp_path)
