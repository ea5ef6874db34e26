"""Each rule of structure.py finds what breaks it."""

import subprocess
from pathlib import Path

import pytest

from tests.structure import ROOT, Structure, dotted, matches, sdist_files, table, wheel_names


@pytest.fixture
def structure(tmp_path: Path):
    """Make a project of files: `structure({"a/low.py": "import a.high"})`."""

    def make(files: dict[str, str]) -> Structure:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return Structure({root: tmp_path / root for root in {name.split("/")[0] for name in files}})

    return make


@pytest.mark.parametrize(
    "text",
    [
        "import a.high.x",
        "from a.high import x",
        "from a.high.x import name",
        "def f():\n    import a.high.x",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from a.high.x import Name",
    ],
)
def test_import_of_a_higher_layer_is_found_wherever_it_is(structure, text):
    project = structure({"a/low/y.py": text, "a/high/__init__.py": "", "a/high/x.py": ""})
    assert project.against_layers({"a": "low / high"}) == [("a.low.y", "a.high.x")]
    assert project.against_layers({"a": "high / low"}) == []


def test_packages_of_one_layer_import_each_other_only_where_it_is_allowed(structure):
    project = structure({"a/one.py": "import a.two", "a/two.py": ""})
    assert project.against_layers({"a": "one two"}) == [("a.one", "a.two")]
    assert project.against_layers({"a": "one two +"}) == []


def test_import_of_the_own_root_is_found(structure):
    project = structure({"a/__init__.py": "", "a/one.py": "from a import Name"})
    assert project.against_layers({"a": "one"}) == [("a.one", "a")]


def test_package_without_a_layer_is_named(structure):
    with pytest.raises(AssertionError, match=r"a\.two has no place in LAYERS"):
        structure({"a/one.py": "", "a/two.py": "import a.one"}).against_layers({"a": "one"})


def test_import_of_a_root_that_is_not_allowed_is_found(structure):
    project = structure({"a/one.py": "import b.two", "a/cli.py": "import b", "b/two.py": ""})
    assert project.wrong_directions("a", "a.cli") == [("a.one", "b.two")]
    assert project.wrong_directions("b", "") == []


def test_import_past_the_init_of_a_package_is_found(structure):
    project = structure(
        {
            "a/x/__init__.py": "from a.x.part import Name\n__all__ = ['Name']",
            "a/x/part.py": "",
            "a/x/other.py": "from a.x.part import Name",
            "a/x/y/__init__.py": "from a.x.part import Name",
            "a/good.py": "from a.x import Name, y",
            "a/deep.py": "from a.x.part import Name",
            "a/late.py": "def f():\n    from a.x import part",
        }
    )
    assert project.past_packages("") == [("a.deep", "a.x.part"), ("a.late", "a.x")]
    assert project.past_packages("a.x") == []


def test_cycle_is_found_even_for_types(structure):
    late = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from a import one"
    project = structure(
        {"a/one.py": "import a.two", "a/two.py": "import a.three", "a/three.py": late}
    )
    assert set(project.cycle()) == {"a.one", "a.two", "a.three"}
    assert structure({"b/one.py": "import b.two", "b/two.py": ""}).cycle() == []


def test_import_between_parts_that_must_not_know_each_other_is_found(structure):
    project = structure(
        {
            "a/x/nats/m.py": "import a.x.redis, a.x.nats.n, a.x.base",
            "a/x/redis.py": "",
            "a/x/base.py": "",
        }
    )
    assert project.between("a.x.nats a.x.redis") == [("a.x.nats.m", "a.x.redis")]


def test_third_party_package_is_found_outside_its_doors(structure):
    project = structure({"a/one.py": "import json, yaml", "a/two.py": "from rich.text import Text"})
    assert project.outside_doors({"yaml": "a.two", "rich": "a.two"}) == [("a.one", "yaml")]
    assert project.outside_doors({"yaml": "*"}) == [("a.two", "rich.text")]


def test_use_of_a_module_or_an_attribute_is_found(structure):
    project = structure({"a/pure.py": "import asyncio.queues", "a/x.py": "import os\nos.environ"})
    assert project.uses("a.pure", "socket asyncio") == [("a.pure", "asyncio.queues")]
    assert project.readers("environ getenv", besides="") == ["a.x"]
    assert project.readers("environ getenv", besides="a.x") == []


def test_decoder_that_bypasses_the_limit_on_nesting_is_found(structure):
    project = structure(
        {
            "a/one.py": "import msgspec\n_decode = msgspec.json.Decoder(str).decode",
            "a/two.py": "import json\njson.loads('1')",
            "a/good.py": "import msgspec\nmsgspec.json.encode(b'1'.decode())",
        }
    )
    assert project.decoders(besides="") == ["a.one", "a.two"]
    assert project.decoders(besides="a.two") == ["a.one"]


def test_folder_with_too_many_modules_is_found(structure):
    files = {f"a/b/m{number}.py": "" for number in range(17)} | {"a/b/__init__.py": ""}
    assert structure(files).crowded_folders(16) == {"a/b": 17}
    assert structure(files).crowded_folders(17) == {}


def test_wheel_with_another_top_level_name_is_seen(tmp_path):
    for name in ("a", "tools"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    wheel = '[tool.hatch.build.targets.wheel]\npackages = ["a", "tools"]\n'
    project = '[project]\nname = "a"\nversion = "1"\n'
    (tmp_path / "pyproject.toml").write_text(project + wheel)
    assert wheel_names(tmp_path) == {"a", "tools"}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the list of files that git has")
def test_sdist_has_every_file_of_the_repository(tmp_path):
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert set(tracked.stdout.splitlines()) <= sdist_files(tmp_path)


def test_names_are_those_of_whole_modules():
    assert dotted("cli edge.http edges") == "eventbus.cli eventbus_edge.http eventbus.edges"
    assert table("a b: cli ; a: edge.x\n; c: *") == {
        "a": "eventbus.cli eventbus_edge.x",
        "b": "eventbus.cli",
        "c": "*",
    }
    assert matches("eventbus.cli.app", "eventbus.cli")
    assert not matches("eventbus.client", "eventbus.cli")
