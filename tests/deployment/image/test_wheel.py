"""The wheel that the image is made of: all that is needed, and the programs that run from it."""

import json
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("deployment")
ROOT = Path(__file__).parents[3]
PACKAGES = {"eventbus": "eventbus", "eventbus_edge": "edge/eventbus_edge"}
"""The import names of the wheel, and where their sources are."""


@pytest.fixture(scope="session")
def files(wheel):
    """The contents of the wheel's files, by their names."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_wheel_has_every_file_of_the_packages_as_it_is_and_no_other(files, wheel):
    sources = wheel.parent / "src"
    expected = {
        f"{package}/{path.relative_to(sources / folder)}": path.read_bytes()
        for package, folder in PACKAGES.items()
        for path in (sources / folder).rglob("*")
        if path.is_file()
    }
    assert {f"{package}/py.typed" for package in PACKAGES} < expected.keys()
    assert {
        "eventbus_edge/static/eventbus.js",
        "eventbus_edge/static/dashboard.html",
    } < expected.keys()
    assert {name: body for name, body in files.items() if ".dist-info/" not in name} == expected


def test_wheel_says_what_it_needs_and_what_it_offers(files):
    [info] = {name.split("/")[0] for name in files} - set(PACKAGES)
    metadata = Parser().parsestr(files[f"{info}/METADATA"].decode())
    assert metadata["Name"] == "eventbus"
    assert set(metadata.get_all("Provides-Extra")) >= {"contracts", "otel", "redis"}
    assert f"{info}/licenses/LICENSE" in files
    assert (
        b"[console_scripts]\neventbus = eventbus.cli.app:main" in files[f"{info}/entry_points.txt"]
    )


def test_programs_run_from_the_wheel_and_not_from_these_sources(engine, recipe):
    code, output = engine.run(
        "python", "-c",
        "import sys, eventbus, eventbus_edge\n"
        "for each in eventbus, eventbus_edge: assert each.__file__.startswith(sys.prefix), each\n"
        "print(sys.prefix)",
    )  # fmt: skip
    assert (code, str(ROOT) in output) == (0, False), output
    if engine.is_confined:
        assert output.strip() == str(Path(recipe.environ["PATH"].split(":")[0]).parent)


def test_command_line_works_in_a_container(engine, recipe):
    code, output = engine.run(*recipe.entrypoint, "--version")
    assert (code, output.split()[0]) == (0, "eventbus"), output
    arguments = ("schema", "export", "--format", "asyncapi", "--app", "eventbus.notifications")
    code, output = engine.run(*recipe.entrypoint, *arguments)
    assert code == 0, output
    assert json.loads(output)["asyncapi"] == "3.0.0"
    environ = {"BROADCAST_DRIVER": "memory", "BROADCAST_WEBSOCKET_PORT": "0"}
    code, output = engine.run(*recipe.entrypoint, "doctor", "--json", environ=environ)
    assert code == 0, output
    assert {"settings", "driver"} <= {each["check"] for each in json.loads(output)["findings"]}
