"""Every YAML, JSON and TOML file of the repository, and every such block of its pages.

A duplicate key in a mapping is refused: Go's YAML, which Docker Compose, Kubernetes,
Prometheus and Grafana read with, refuses it too, where PyYAML silently keeps the last.
"""

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FOLDERS = (
    "compose", "deploy", "docs", "edge", "eventbus", "examples", "npm", "schemas", "scripts",
    "tests",
)  # fmt: skip
IGNORED = {"node_modules", "dist", "secrets"}
_BLOCK = re.compile(r"^( *)```(yaml|yml|json|toml)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def check_yaml(text):
    for document in yaml.compose_all(text, yaml.SafeLoader):
        _check_node(document)


def _check_node(node):
    # As go-yaml's decoder does: keys are compared as written, `<<` included, before merges.
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = {key for key in keys if keys.count(key) > 1}
        assert not twice, f"line {node.start_mark.line + 1}: {twice} twice in one mapping"
        for key, value in node.value:
            if key.value == "patch" and isinstance(value, yaml.ScalarNode):  # of a kustomization
                check_yaml(value.value)
            _check_node(value)
    elif isinstance(node, yaml.SequenceNode):
        for each in node.value:
            _check_node(each)


def check_json(text):
    json.loads(text, object_pairs_hook=_unique)


def _unique(pairs):
    keys = [key for key, _ in pairs]
    assert len(keys) == len(set(keys)), f"a key twice among {keys}"
    return dict(pairs)


CHECKS = {
    "yaml": check_yaml, "yml": check_yaml, "json": check_json,
    "toml": tomllib.loads,  # refuses by itself
}  # fmt: skip


def found():
    """Each text, its kind, and where it is."""
    paths = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in FOLDERS:
        paths += (path for path in (ROOT / folder).rglob("*.*") if path.is_file())
    for path in sorted(paths):
        where = path.relative_to(ROOT)
        kind = path.suffix.removeprefix(".")
        if IGNORED & set(where.parts):
            continue
        if kind in CHECKS:
            yield pytest.param(kind, path.read_text("utf-8"), id=str(where))
        elif kind == "md":
            text = path.read_text("utf-8")
            for block in _BLOCK.finditer(text):
                line = text.count("\n", 0, block.start()) + 1
                yield pytest.param(block[2], block[3], id=f"{where}:{line}")


@pytest.mark.parametrize(("kind", "text"), list(found()))
def test_no_key_appears_twice_in_one_mapping(kind, text):
    CHECKS[kind](text)


def test_files_and_blocks_of_all_kinds_are_found():
    ids = {param.id.partition(":")[0] for param in found()}
    assert ids >= {
        "compose/compose.yaml", "compose/grafana/dashboards/eventbus.json",
        "compose/prometheus/alerts.yml", "deploy/kubernetes/gateway/kustomization.yaml",
        "docs/operating.md", "docs/access.md", "docs/history.md", "npm/client/package.json",
        "pyproject.toml", "schemas/schemas.lock.json",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("yaml", "a: 1\na: 2"),
        ("yaml", 'a: 1\n"a": 2'),
        ("yaml", "a: [{b: {c: 1, c: 2}}]"),
        ("yaml", "a: 1\n---\nb: 1\nb: 2"),
        ("yaml", "x: &x {a: 1}\ny:\n  <<: *x\n  <<: *x"),
        ("yaml", "patches:\n- patch: |-\n    - op: add\n      op: remove"),
        ("json", '{"a": [{"b": 1, "\\u0062": 2}]}'),
        ("toml", "a = 1\na = 2"),
    ],
)
def test_a_key_that_appears_twice_is_found(kind, text):
    with pytest.raises((AssertionError, tomllib.TOMLDecodeError)):
        CHECKS[kind](text)
