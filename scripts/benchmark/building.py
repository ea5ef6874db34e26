"""The set-up of scripts/bench, in build/bench: C programs, and the peers with pinned versions."""

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Final

__all__ = ["BUILT", "compile_programs", "install_node", "install_python"]

ROOT: Final = Path(__file__).parents[2]
HERE: Final = Path(__file__).parent
BUILT: Final = ROOT / "build" / "bench"
_FLAGS: Final = ("-O2", "-Wall", "-Wextra")


def compile_programs() -> Path:
    """Compile the load generator and the limit. Returns the folder."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise RuntimeError("a C compiler (cc) is not on PATH; on Debian: apt-get install gcc")
    BUILT.mkdir(parents=True, exist_ok=True)
    for name in ("loader", "limit"):
        source, program = HERE / f"{name}.c", BUILT / name
        if not _is_newer(program, source):
            made = program.with_suffix(f".{os.getpid()}")
            _run([compiler, *_FLAGS, "-o", str(made), str(source)])
            made.replace(program)  # another process may do the same
    return BUILT


def install_node() -> Path:
    """Install the Node peers as the lock file says. Returns their folder."""
    folder = BUILT / "node"
    shutil.copytree(HERE / "peers" / "node", folder, dirs_exist_ok=True)
    if not _is_newer(folder / "node_modules" / ".package-lock.json", folder / "package-lock.json"):
        print(f"Installing the Node peers into {folder.relative_to(ROOT)}", file=sys.stderr)
        _run(["npm", "ci", "--no-audit", "--no-fund", "--loglevel=error"], folder)
    return folder


def install_python() -> Path:
    """Install the Python peers into an environment of their own. Returns its interpreter."""
    folder, requirements = BUILT / "python", HERE / "peers" / "python" / "requirements.txt"
    python, stamp = folder / "bin" / "python", folder / ".installed"
    if not _is_newer(stamp, requirements):
        print(f"Installing the Python peers into {folder.relative_to(ROOT)}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*pip, "--requirement", str(requirements)])
        stamp.touch()
    return python


def _is_newer(made: Path, source: Path) -> bool:
    return made.exists() and made.stat().st_mtime >= source.stat().st_mtime


def _run(command: Sequence[str], folder: Path = ROOT) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr or done.stdout}")
