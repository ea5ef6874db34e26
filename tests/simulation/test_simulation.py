"""The promises hold for a new seed, and for the faults that the simulation once found.

Most runs are separate processes with a fixed hash seed, so that a seed repeats a run.
"""

import ast
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from eventbus.drivers.nats.history import StreamReader
from eventbus.drivers.nats.subscriptions import NatsSubscription, Subscriptions
from eventbus_edge.delivery.wildcards import Wildcards
from eventbus_edge.lifecycle.holdings import Holdings
from eventbus_edge.presence.nodes import LiveNodes
from tests.simulation.breaks import BREAKS
from tests.simulation.found import (
    LOSS_ON_ONE_CHANNEL_OF_A_PATTERN,
    NODE_THAT_DIES,
    SEEDS,
    STORE_RESTORED_DURING_A_READ,
)
from tests.simulation.promises import MISSING
from tests.simulation.schedule import broken_by, make

ROOT = Path(__file__).parents[2]
PER_RUN = 6000
SIMULATED = ("edge/eventbus_edge", "eventbus/drivers/nats", "eventbus/cluster")

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("own_current_buses")]


def simulate(seed, *arguments, steps=PER_RUN):
    options = ["--seed", seed, "--steps", steps, "--per-run", PER_RUN, *arguments]
    done = subprocess.run(
        [sys.executable, "-m", "tests.simulation", *map(str, options)],
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, done.stdout


def test_promises_hold_for_a_new_seed():
    # The seed changes with the simulated code, but is the same in each test of one version.
    digest = hashlib.sha256()
    for folder in SIMULATED:
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    seed = int(digest.hexdigest()[:8], 16)
    status, output = simulate(seed)
    assert status == 0, f"scripts/simulate --seed {seed} --steps {PER_RUN}\n{output}"


@pytest.mark.parametrize("fault", SEEDS)
def test_fault_that_was_found_stays_fixed(fault):
    status, output = simulate(SEEDS[fault])
    assert status == 0, output


@pytest.mark.parametrize(
    ("name", "promise"),
    [
        ("deliver-the-backlog-twice", "delivery: "),
        ("keep-no-backlog", "delivery: nothing is missing"),
        ("claim-full-recovery", "delivery: nothing is missing"),
        ("hide-gaps", "delivery: nothing is missing"),
        ("forget-to-remove-subscribers", "delivery: only joined channels"),
        ("announce-each-tab", "presence: a member joins once"),
        ("ignore-revocations", "access: a revocation takes effect"),
    ],
)
def test_broken_code_is_noticed(name, promise):
    status, output = simulate(1, "--shrink", 0, "--break", name, steps=30_000)
    assert status == 1, output
    assert f": {promise}" in output


@pytest.mark.parametrize(
    ("broken", "attribute", "name", "promise"),
    [
        (LiveNodes, "_on_heartbeat", "ignore-dead-nodes", "presence: members are right"),
        (Holdings, "is_held", "count-dead-nodes", "lifecycle: the last event is right"),
    ],
)
def test_node_that_dies_takes_its_members_along(monkeypatch, broken, attribute, name, promise):
    assert broken_by(NODE_THAT_DIES) is None
    monkeypatch.setattr(broken, attribute, getattr(broken, attribute))  # to be restored
    BREAKS[name]()
    assert broken_by(NODE_THAT_DIES).promise == promise


def test_loss_on_one_channel_of_a_pattern_is_reported_after_messages_of_another(monkeypatch):
    assert broken_by(LOSS_ON_ONE_CHANNEL_OF_A_PATTERN) is None
    monkeypatch.setattr(NatsSubscription, "_follow_subject", NatsSubscription._follow_subject)
    BREAKS["follow-filters-as-a-whole"]()
    assert broken_by(LOSS_ON_ONE_CHANNEL_OF_A_PATTERN).promise == MISSING


def test_client_that_leaves_a_pattern_and_still_gets_messages_is_noticed(monkeypatch):
    steps = [
        ("connect", 9, 0),
        ("wait", 18, 0),
        ("join", 9, 0),
        ("wait", 22, 0),
        ("leave", 9, 0),
        ("wait", 18, 0),
        ("pub", 0, 0),
        ("wait", 18, 0),
    ]
    assert broken_by(steps) is None
    monkeypatch.setattr(Wildcards, "leave", Wildcards.leave)  # to be restored
    BREAKS["forget-to-remove-subscribers-of-patterns"]()
    assert broken_by(steps).promise == "delivery: only joined channels"


def test_read_does_not_mix_the_histories_of_a_store_that_is_restored(monkeypatch):
    assert broken_by(STORE_RESTORED_DURING_A_READ) is None
    for owner, attribute in ((Subscriptions, "_read"), (StreamReader, "_of_one_history")):
        monkeypatch.setattr(owner, attribute, getattr(owner, attribute))  # to be restored
    BREAKS["deliver-what-was-read-during-a-loss"]()
    broken = broken_by(STORE_RESTORED_DURING_A_READ, to_the_end=False)
    assert broken.promise == MISSING


def test_failing_run_shrinks_to_a_few_steps_that_still_fail():
    status, output = simulate(1, "--shrink", 100, "--break", "forget-to-remove-subscribers")
    assert status == 1
    count = int(re.search(r"shrunk to (\d+) steps", output)[1])
    assert count <= 20, output
    test = ast.parse(output[output.index("def test_") :]).body[0]
    steps = ast.literal_eval(test.body[0].value.args[0])
    assert len(steps) == count
    assert broken_by(steps) is None  # the code itself is right


def test_seed_makes_the_same_steps_each_time():
    assert make(7, 50) == make(7, 50) != make(8, 50)
