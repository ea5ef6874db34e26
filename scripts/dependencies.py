"""Checks the dependencies, and writes the lock files and the bill of materials of the image.

See scripts/audit. Known vulnerabilities are listed in ADVISORIES, so that no network is
needed. The lock files contain a fingerprint of their inputs, so that a stale one is detected
without resolving again.
"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT: Final = Path(__file__).parents[1]
ADVISORIES: Final = ("scripts/advisories.toml", "eventbus/server/advisories.toml")
EXTRAS: Final = ("contracts", "otel", "redis")
"""The extras that the image contains, as in the Dockerfile."""
INTERNAL: Final = frozenset({"bench", "demo", "dev"})
"""Extras for work on this project, whose minimum versions do not matter to users."""
PYTHON: Final = "3.13"
LOCK: Final = "requirements.lock"
BUILD_LOCK: Final = "requirements-build.lock"
LOCKS: Final = (LOCK, BUILD_LOCK)
_FINGERPRINT: Final = "# made from: sha256:"
_PINNED: Final = re.compile(r"([A-Za-z0-9._-]+)==([^\s;]+)")
_VENDORED: Final = re.compile(r"\(v([0-9.]+)\)")


class Locked(NamedTuple):
    """One package of a lock file."""

    version: Version
    hashes: int


class Advisory(NamedTuple):
    """Vulnerabilities in some versions of a package."""

    package: str
    affected: SpecifierSet
    ids: tuple[str, ...]
    about: str
    source: str


def read_project(root: Path) -> Mapping[str, Any]:
    """The content of pyproject.toml."""
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


def required(project: Mapping[str, Any], lock: str) -> list[Requirement]:
    """The requirements that a lock file is made from."""
    if lock == BUILD_LOCK:
        texts = list(project["build-system"]["requires"])
    else:
        optional = project["project"]["optional-dependencies"]
        texts = [*project["project"]["dependencies"]]
        texts += [text for extra in EXTRAS for text in optional[extra]]
    return [Requirement(text) for text in texts]


def fingerprint(project: Mapping[str, Any], lock: str) -> str:
    """A hash of the requirements of a lock file."""
    text = "\n".join(sorted(map(str, required(project, lock)))) + PYTHON
    return hashlib.sha256(text.encode()).hexdigest()


def read_lock(text: str) -> dict[str, Locked]:
    """The packages of a lock file, by name. Raises ValueError for a package without a version."""
    packages: dict[str, Locked] = {}
    for line in text.replace("\\\n", " ").splitlines():
        if not line or line.startswith(("#", " ")):
            continue
        match = _PINNED.match(line)
        if match is None:
            raise ValueError(f"not a package with a version: {line:.80}")
        packages[canonicalize_name(match[1])] = Locked(Version(match[2]), line.count("--hash="))
    return packages


def read_advisories(text: str) -> list[Advisory]:
    """The entries of one of the ADVISORIES."""
    return [
        Advisory(
            canonicalize_name(entry["package"]),
            SpecifierSet(entry["affected"], prereleases=True),
            tuple(entry["ids"]),
            entry["about"],
            entry["source"],
        )
        for entry in tomllib.loads(text)["advisory"]
    ]


def lock_faults(project: Mapping[str, Any], lock: str, text: str) -> Iterator[str]:
    """What is wrong with a lock file."""
    if f"{_FINGERPRINT}{fingerprint(project, lock)}" not in text.splitlines():
        yield f"{lock} is stale: pyproject.toml has changed; run scripts/audit lock"
    packages = read_lock(text)
    for name, locked in packages.items():
        if not locked.hashes:
            yield f"{lock}: {name} has no hash"
    environment = {"sys_platform": "linux", "python_version": PYTHON, "extra": ""}
    for requirement in required(project, lock):
        if requirement.marker and not requirement.marker.evaluate(environment):
            continue
        name = canonicalize_name(requirement.name)
        if name not in packages:
            yield f"{lock} lacks {name}"
        elif not requirement.specifier.contains(packages[name].version, prereleases=True):
            yield f"{lock} has {name} {packages[name].version}, which {requirement} does not allow"


def known_holes(
    advisories: Sequence[Advisory], name: str, version: Version, where: str
) -> Iterator[str]:
    """The vulnerabilities of one version."""
    for each in advisories:
        if each.package == name and each.affected.contains(version):
            ids = ", ".join(each.ids)
            yield f"{where}: {name} {version} has {ids}: {each.about} ({each.source})"


def minimum_versions(project: Mapping[str, Any]) -> Iterator[tuple[str, Version | None]]:
    """The lowest version of each package that users may install; None if there is no minimum."""
    optional = project["project"]["optional-dependencies"]
    groups = [project["project"]["dependencies"], project["build-system"]["requires"]]
    groups += [texts for extra, texts in optional.items() if extra not in INTERNAL]
    for text in (text for texts in groups for text in texts):
        requirement = Requirement(text)
        lowest = [
            Version(each.version.removesuffix(".*"))
            for each in requirement.specifier
            if each.operator in {">=", "==", "~="}
        ]
        yield canonicalize_name(requirement.name), max(lowest, default=None)


def faults(root: Path = ROOT) -> Iterator[str]:
    """Everything that is wrong, as far as can be checked without a network."""
    project = read_project(root)
    advisories = [
        each for file in ADVISORIES for each in read_advisories((root / file).read_text("utf-8"))
    ]
    for lock in LOCKS:
        text = (root / lock).read_text(encoding="utf-8")
        yield from lock_faults(project, lock, text)
        for name, locked in read_lock(text).items():
            yield from known_holes(advisories, name, locked.version, lock)
    for name, version in minimum_versions(project):
        if version is None:
            yield f"pyproject.toml: {name} has no minimum version"
        else:
            yield from known_holes(advisories, name, version, "pyproject.toml, minimum version")
    for path in sorted((root / "npm").glob("*/package.json")):
        package = json.loads(path.read_text(encoding="utf-8"))
        if package.get("dependencies"):
            yield f"npm/{path.parent.name} has dependencies: no package for browsers may have any"


def write_locks(root: Path) -> None:
    """Resolve both lock files again, with the newest versions that are allowed."""
    project = read_project(root)
    for lock in LOCKS:
        command = [
            sys.executable, "-m", "uv", "pip", "compile", "-", "--quiet", "--no-header",
            "--generate-hashes", "--python-version", PYTHON, "--python-platform", "linux",
            "--no-emit-index-url", "--no-annotate",
        ]  # fmt: skip
        text = "\n".join(map(str, required(project, lock)))
        done = _run(command, root, text)
        head = (
            f"# What the image {'is built with' if lock == BUILD_LOCK else 'contains'}; "
            f"scripts/audit lock writes this file.\n{_FINGERPRINT}{fingerprint(project, lock)}\n"
        )
        (root / lock).write_text(head + done.stdout, encoding="utf-8")


def bill_of_materials(root: Path) -> dict[str, Any]:
    """What the image contains besides Debian and Python, as CycloneDX 1.6."""
    command = [
        sys.executable, "-m", "cyclonedx_py", "requirements", LOCK, "--pyproject",
        "pyproject.toml", "--mc-type", "application", "--output-reproducible", "--spec-version",
        "1.6", "--output-format", "JSON", "--output-file", "-",
    ]  # fmt: skip
    done = _run(command, root)
    bill: dict[str, Any] = json.loads(done.stdout)
    bill["components"] += [_vendored(path) for path in _vendored_scripts(root)]
    return bill


def _vendored_scripts(root: Path) -> list[Path]:
    return sorted((root / "edge" / "eventbus_edge" / "static" / "vendor").glob("*/*.js"))


def _vendored(path: Path) -> dict[str, Any]:
    """The component for a script of the dashboard, whose version is in its first line."""
    name, content = path.parent.name, path.read_bytes()
    match = _VENDORED.search(content.decode().splitlines()[0])
    assert match, f"{path.name} has no version in its first line"
    purl = f"pkg:npm/{name}@{match[1]}"
    return {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": match[1],
        "purl": purl,
        "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(content).hexdigest()}],
        "licenses": [{"license": {"id": "MIT"}}],
    }


def ask_online(root: Path) -> tuple[list[str], list[str]]:
    """The vulnerabilities that pip-audit reports, and the packages that it could not look up."""
    problems, unknown = list[str](), list[str]()
    for lock in LOCKS:
        command = [
            sys.executable, "-m", "pip_audit", "--requirement", lock, "--require-hashes",
            "--disable-pip", "--progress-spinner", "off", "--format", "json",
        ]  # fmt: skip
        done = _run(command, root, check=False)
        if not done.stdout:
            unknown.append(f"{lock}: {done.stderr.strip().splitlines()[-1]}")
            continue
        for each in json.loads(done.stdout)["dependencies"]:
            if "skip_reason" in each:
                unknown.append(f"{lock}: {each['skip_reason']}")
            for hole in each.get("vulns", ()):
                problems.append(f"{lock}: {each['name']} {each['version']} has {hole['id']}")
    return problems, unknown


def _run(
    command: Sequence[str], folder: Path, stdin: str = "", *, check: bool = True
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - the commands of this module
        command, cwd=folder, input=stdin, capture_output=True, text=True, check=check
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/audit", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("online")
    commands.add_parser("lock")
    commands.add_parser("sbom").add_argument("file", type=Path)
    options = parser.parse_args(arguments)
    if options.command == "lock":
        write_locks(ROOT)
    if options.command == "sbom":
        options.file.write_text(json.dumps(bill_of_materials(ROOT), indent=2) + "\n", "utf-8")
        return 0
    problems, unknown = list(faults()), list[str]()
    if options.command == "online":
        more, unknown = ask_online(ROOT)
        problems += more
    for line in problems:
        print(line, file=sys.stderr)
    if unknown:
        print(f"pip-audit could not look up {len(unknown)}: {unknown[0]}", file=sys.stderr)
    if problems or unknown:
        return 1
    print("the lock files are current, and no version has a known vulnerability")
    return 0


if __name__ == "__main__":
    sys.exit(main())
