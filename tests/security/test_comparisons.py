"""Secrets and signatures are compared in constant time, everywhere in the code."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SENSITIVE = re.compile(
    r"(^|_)(secrets?|password|passwd|signatures?|signed|digest|hmac|mac|api_key|hexdigest)$"
)
KEYS = re.compile(r"^(key|given|expected)$")
"""Names that may be secrets in code that authenticates clients."""
DOORS = ("access", "http", "pusher", "protocols")
NOT_SECRET = {"pusher/signing.py: digest != _md5(body)"}
"""The MD5 of a body is not a secret; the signature that covers it is checked later."""


def name_of(node):
    if isinstance(node, ast.Call):
        node = node.func
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def leaky_comparisons(path, *, at_a_door):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Compare):
            continue
        sides = [node.left, *node.comparators]
        if any(isinstance(side, ast.Constant) for side in sides):
            continue  # whether there is one, or how long it is
        names = [name_of(side) for side in sides]
        is_equality = any(isinstance(each, ast.Eq | ast.NotEq) for each in node.ops)
        if is_equality and (
            any(SENSITIVE.search(name) for name in names)
            or (at_a_door and all(KEYS.match(name) for name in names))
        ):
            yield ast.unparse(node)


def test_secrets_are_never_compared_by_equality():
    found = set()
    for folder in ("eventbus", "edge/eventbus_edge"):
        for path in (ROOT / folder).rglob("*.py"):
            place = f"{path.parent.name}/{path.name}"
            for text in leaky_comparisons(path, at_a_door=path.parent.name in DOORS):
                found.add(f"{place}: {text}")
    assert found <= NOT_SECRET, found - NOT_SECRET


def test_leaky_comparisons_would_be_found(tmp_path):
    path = tmp_path / "leaky.py"
    path.write_text(
        "given == key\nself.api_key != given\nsign(x) == signature\nmac.hexdigest() == text\n"
        "secret == ''\nkey == 'sub'\n"
    )
    assert len(list(leaky_comparisons(path, at_a_door=True))) == 4
    assert len(list(leaky_comparisons(path, at_a_door=False))) == 3
