"""Only the protocol's own modules, its routes and the settings know its name."""

import re
from pathlib import Path

import eventbus_edge

ROOT = Path(eventbus_edge.__file__).parent
OWN = ("protocols/pusher.py", "protocols/__init__.py", "pusher/", "config/edge.py", "app.py")
RESERVED = "http/types.py"  # names the events that no publisher may send, in any protocol


def test_no_other_module_knows_which_protocol_a_connection_speaks():
    knowing = [
        name
        for path in ROOT.rglob("*.py")
        if not (name := str(path.relative_to(ROOT))).startswith((*OWN, RESERVED))
        and re.search("pusher|laravel", path.read_text(encoding="utf-8"), re.IGNORECASE)
    ]
    assert knowing == []


def test_application_uses_it_in_one_place():
    source = (ROOT / "app.py").read_text(encoding="utf-8")
    assert len(re.findall("pusher", source, re.IGNORECASE)) == 3  # import, module, call
