"""The previous version of this project, from git."""

import io
import subprocess
import tarfile
from pathlib import Path
from typing import Final

__all__ = ["NoPrevious", "extract_previous", "previous_commit"]

_BASES: Final = ("origin/main", "main")


class NoPrevious(Exception):
    """There is no previous version; the message says why."""


def previous_commit(root: Path) -> str:
    """The commit where this branch left main; on main itself, the commit before HEAD.

    Raises NoPrevious.
    """
    head = _git(root, "rev-parse", "--verify", "HEAD")
    for base in _BASES:
        try:
            fork = _git(root, "merge-base", "HEAD", base)
        except NoPrevious:
            continue
        if fork != head:
            return fork
    return _git(root, "rev-parse", "--verify", "HEAD~1")


def extract_previous(root: Path, folder: Path) -> str:
    """Write the files of the previous commit into a folder. Returns the commit.

    Raises NoPrevious in a shallow clone, and without git or its history.
    """
    commit = previous_commit(root)
    packed = _run(root, "archive", "--format=tar", commit, "eventbus", "edge", "pyproject.toml")
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return commit


def _git(root: Path, *arguments: str) -> str:
    return _run(root, *arguments).decode().strip()


def _run(root: Path, *arguments: str) -> bytes:
    command = ["git", "-c", f"safe.directory={root}", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, check=False)  # noqa: S603
    except FileNotFoundError:
        raise NoPrevious("git is not on PATH") from None
    if done.returncode:
        why = done.stderr.decode(errors="replace").strip().splitlines() or ["git failed"]
        raise NoPrevious(f"git {arguments[0]}: {why[-1]}")
    return done.stdout
