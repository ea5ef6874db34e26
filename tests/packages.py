"""Packages of npm: what tests take from the registry, and this project's own as they are packed."""

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
STATIC = Path("edge", "eventbus_edge", "static")
OURS = ("client", "react", "vue")


def run(*command: str | Path, cwd: Path) -> str:
    """Run a program of npm or Node to its end; returns its output. Raises if it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}{done.stderr}"
    return done.stdout


MANIFESTS = ("package.json", "package-lock.json")
CI = ("npm", "ci", "--no-audit", "--no-fund", "--loglevel=error")


def install(manifests: Path, cache: Path) -> Path:
    """`node_modules` of a package-lock.json, installed once into a cache folder."""

    def make(folder: Path) -> None:
        for name in MANIFESTS:
            shutil.copy(manifests / name, folder)
        run(*CI, "--ignore-scripts", cwd=folder)

    return _cached(cache, manifests / "package-lock.json", make) / "node_modules"


def install_example(name: str, cache: Path) -> Path:
    """`node_modules` of an example; `make_program` adds this project's packages as they are now."""
    example = Path("examples", name)

    def make(folder: Path) -> None:
        copy_sources(folder)
        (folder / example).mkdir(parents=True)
        for file in (*MANIFESTS, ".npmrc"):
            shutil.copy(ROOT / example / file, folder / example)
        run(*CI, cwd=folder / example)

    lock = ROOT / example / "package-lock.json"
    return _cached(cache, lock, make) / example / "node_modules"


def _cached(cache: Path, lock: Path, make: Callable[[Path], None]) -> Path:
    folder = cache / hashlib.sha256(lock.read_bytes()).hexdigest()[:16]
    if not folder.exists():
        made = Path(tempfile.mkdtemp(dir=cache))
        try:
            make(made)
            made.rename(folder)
        except OSError:
            if not folder.exists():  # otherwise another process was faster
                raise
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return folder


def copy_sources(into: Path) -> None:
    """What the packages are made of, in a copy: packing writes files, and other tests read them."""
    built = shutil.ignore_patterns("node_modules", "*.tgz", "eventbus.*", "user-channel.*")
    shutil.copytree(ROOT / "npm", into / "npm", ignore=built)
    shutil.copytree(ROOT / STATIC, into / STATIC)
    shutil.copy(ROOT / "LICENSE", into)


def pack(into: Path) -> dict[str, Path]:
    """The archives that `npm pack` makes, by the name of the package's folder."""
    copy_sources(into)
    folders = [f"./{name}" for name in OURS]
    run("npm", "pack", "--silent", "--offline", *folders, cwd=into / "npm")
    archives = {name: list((into / "npm").glob(f"eventbus-{name}-*.tgz")) for name in OURS}
    return {name: archive for name, [archive] in archives.items()}


def make_program(into: Path, archives: dict[str, Path], node_modules: Path) -> Path:
    """The folder of a program that has installed this project's packages, and `node_modules`."""
    (into / "node_modules" / "@eventbus").mkdir(parents=True)
    (into / "package.json").write_text('{"type": "module"}')
    for path in node_modules.iterdir():
        if path.name == "@eventbus":
            continue
        (into / "node_modules" / path.name).symlink_to(path)
    for name, archive in archives.items():
        with tarfile.open(archive) as tar, tempfile.TemporaryDirectory(dir=into) as extracted:
            tar.extractall(extracted, filter="data")
            (Path(extracted) / "package").rename(into / "node_modules" / "@eventbus" / name)
    return into
