"""`eventbus queue`: what its commands print, for people and for programs, and how they fail."""

import asyncio
import datetime
import functools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.drivers.queues import QueueStore
from eventbus.queue import FailedJob
from eventbus.queue.jobs import failure_of
from tests.loading import load_application

HERE = Path(__file__).parent
APPS = HERE.parent / "queue"
ROOT = HERE.parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def environment(settings: Settings) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "NATS_URL": settings.nats_url,
        "BROADCAST_CHANNELS_PREFIX": settings.namespace,
        "BROADCAST_HISTORY_BYTES": str(settings.history_bytes),
        "BROADCAST_FAILED_BYTES": "1000000",
        "NO_COLOR": "1",
    }


@pytest.fixture
def run(run_command, environment) -> Run:
    return functools.partial(run_command, "queue", env=environment, cwd=APPS)


@pytest.fixture
def with_queues(settings) -> Callable[..., None]:
    """Calls something with the queues of the test's namespace."""

    def call(use) -> None:
        async def main() -> None:
            changed = msgspec.structs.replace(settings, failed_bytes=1_000_000)
            async with EventBus(changed) as bus:
                await use(await bus.queues())

        asyncio.run(main())

    return call


def _failed(number: int, **changes) -> FailedJob:
    fields = {
        "id": f"job-{number}",
        "queue": "invoices",
        "event": "SendInvoice",
        "attempts": 3,
        "failed_at": datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC),
        "error": "ValueError",
        "message": "no such order",
        "traceback": "Traceback …",
    }
    return FailedJob(**{**fields, **changes})


async def _fail(store: QueueStore, *failed: FailedJob) -> None:
    reader = store.reader("invoices")
    for each in failed:
        await store.push("invoices", each.id, b"{}", 0)
        # A fetch may come before the consumer knows of the job, or give up on a busy machine.
        async with asyncio.timeout(60):
            while (taken := await reader.wait()) is None:
                pass
        await taken.fail(failure_of(each, taken.payload))


def test_stats_show_each_queue_and_the_failures(run, with_queues):
    async def fill(store: QueueStore) -> None:
        for n in range(12):
            await store.push("high_priority", f"h{n}", b"{}", 0)
        await store.push("default", "d", b"{}", 0)
        await store.push("default", "later", b"{}", 300)
        await _fail(store, _failed(1))

    with_queues(fill)
    shown = run("stats")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout == (
        "queue          ready  taken  delayed\n"
        "default            1      0        1\n"
        "high_priority     12      0        0\n"
        "invoices           0      0        0\n"
        "failed: 1\n"
    )
    output = json.loads(run("stats", "--json").stdout)
    assert output["failed"] == 1
    assert {"queue": "default", "ready": 1, "taken": 0, "delayed": 1} in output["queues"]


def test_stats_of_no_queues(run):
    assert run("stats").stdout == "no queue has jobs\nfailed: 0\n"


def test_failed_jobs_are_listed_in_a_table_and_as_json(run, with_queues):
    odd = _failed(2, event="", error="mod.Odd", message="line\nbreak \x1b[31m" + "x" * 100)
    with_queues(lambda store: _fail(store, _failed(1), odd))
    shown = run("failed")
    assert shown.returncode == 0, shown.stderr
    header, first, second = shown.stdout.splitlines()
    assert header.split("  ")[0] == "id"
    assert re.split("  +", first) == [
        "job-1", "SendInvoice", "ValueError: no such order", "invoices", "3",
        "2026-01-02 03:04:05Z",
    ]  # fmt: skip
    assert re.match(r"job-2  \?            mod\.Odd: line break \\x1b\[31mx+…  invoices ", second)
    assert "\x1b" not in shown.stdout

    output = json.loads(run("failed", "--json", "--limit", "1").stdout)
    assert [each["id"] for each in output] == ["job-1"]
    assert output[0]["traceback"] == "Traceback …"


def test_failed_job_is_queued_again_by_its_id(run, with_queues):
    with_queues(lambda store: _fail(store, _failed(1), _failed(2)))
    shown = run("retry", "job-1")
    assert (shown.returncode, shown.stdout) == (0, "retried job-1\n")
    output = json.loads(run("stats", "--json").stdout)
    assert output == {
        "queues": [{"queue": "invoices", "ready": 1, "taken": 0, "delayed": 0}],
        "failed": 1,
    }
    assert json.loads(run("retry", "--all", "--json").stdout) == {
        "retried": ["job-2"],
        "unknown": [],
        "ambiguous": {},
    }


def test_failed_jobs_are_forgotten_and_flushed(run, with_queues):
    with_queues(lambda store: _fail(store, _failed(1), _failed(2), _failed(3)))
    assert run("forget", "job-1").stdout == "forgotten job-1\n"
    assert run("flush", input="n\n").returncode == 1
    assert json.loads(run("stats", "--json").stdout)["failed"] == 2
    assert run("flush", "--yes").stdout == "deleted 2 failed jobs\n"
    assert json.loads(run("flush", "--yes", "--json").stdout) == {"flushed": 0}


IDS = [f"01a209d5-bb7d-74f2-a426-{end}" for end in ("e7fa10d2806d", "f00000000000")]


@pytest.mark.parametrize("command", ["retry", "forget"])
def test_the_start_of_an_id_is_enough_if_it_is_unique(run, with_queues, command):
    ids = [*IDS, "01b00000-0000-7000-8000-000000000000"]
    with_queues(lambda store: _fail(store, *(_failed(0, id=each) for each in ids)))
    shown = run(command, "01a2", "01b0")
    assert shown.returncode == 1
    assert f"01a2 is the start of 2 ids: {', '.join(IDS)}" in shown.stderr
    assert ids[2] in shown.stdout
    shown = run(command, IDS[0][:25])
    assert (shown.returncode, shown.stdout.split()[1]) == (0, IDS[0])
    for too_short in ("01a", ""):
        shown = run(command, too_short, "--json")
        assert shown.returncode == 1
        assert json.loads(shown.stdout)["unknown"] == [too_short]
    assert [each["id"] for each in json.loads(run("failed", "--json").stdout)] == [IDS[1]]


def test_ids_of_failed_jobs_are_whole_on_a_narrow_terminal(on_terminal, with_queues, environment):
    with_queues(lambda store: _fail(store, *(_failed(0, id=each) for each in IDS)))
    for columns in (40, 80):
        shown = on_terminal(columns, "queue", "failed", env=environment)
        assert all(each in shown for each in IDS)
        assert all(len(line) <= columns for line in shown.splitlines()[:-1])
    assert shown.splitlines()[-1] == "not shown in this width: attempts, failed at (see --json)"
    assert "ValueError" in shown


def test_queues_of_failed_jobs_are_folded_before_ids_and_never_cut(
    on_terminal, with_queues, environment
):
    queue = "invoices-of-all-the-customers-abroad"
    with_queues(lambda store: _fail(store, _failed(0, id=IDS[0], queue=queue)))
    for columns in (60, 80):
        shown = on_terminal(columns, "queue", "failed", env=environment)
        rows = [line for line in shown.splitlines() if not line.startswith("not shown")]
        assert any(IDS[0] in line for line in rows)
        assert queue in "".join(line[len(IDS[0]) :].strip() for line in rows[1:])
        assert "…" not in "".join(rows)


@pytest.mark.parametrize("command", ["retry", "forget"])
def test_unknown_id_is_reported_and_the_others_are_done(run, with_queues, command):
    with_queues(lambda store: _fail(store, _failed(1)))
    shown = run(command, "nobody", "job-1")
    assert shown.returncode == 1
    assert "job-1" in shown.stdout
    assert "no such failed job: nobody" in shown.stderr
    assert json.loads(run("stats", "--json").stdout)["failed"] == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["retry"], "or give --all"),
        (["retry", "--all", "job-1"], "or give --all"),
        (["forget"], "give the ids"),
        (["work", "--queue", "a b"], "--queue: 'a b' is not a queue's name"),
        (["work", "--queue", ","], "--queue: a worker needs a queue"),
        (["work", "--concurrency", "0"], "concurrency"),
        (["work", "--app", "no_such_app"], "--app no_such_app: there is no such module"),
        (["stats", "--connection", "nonsense"], "'nonsense' is not a driver"),
    ],
)
def test_wrong_usage_is_reported_with_exit_code_2(run, arguments, expected):
    shown = run(*arguments)
    assert shown.returncode == 2
    assert expected in " ".join(shown.stderr.split())
    assert "Traceback" not in shown.stderr


def test_module_that_lacks_a_module_itself_shows_where(run, tmp_path):
    (tmp_path / "broken_app.py").write_text("import no_such_dependency\n")
    shown = run("work", "--app", "broken_app", cwd=tmp_path)
    assert shown.returncode == 1
    assert "No module named 'no_such_dependency'" in shown.stderr
    assert "broken_app.py" in shown.stderr


def test_driver_without_queues_is_reported(run, environment):
    shown = run("work", env={**environment, "BROADCAST_DRIVER": "null"})
    assert shown.returncode == 1
    assert "the driver null has no queue: set BROADCAST_DRIVER" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_unreachable_broker_is_reported(run, environment):
    shown = run(
        "stats",
        env={**environment, "NATS_URL": "nats://127.0.0.1:1", "BROADCAST_CONNECT_TIMEOUT": "0.3"},
    )
    assert shown.returncode == 1
    assert "cannot connect to nats://127.0.0.1:1" in shown.stderr


WITHOUT_QUEUES = {"BROADCAST_DRIVER": "null", "BROADCAST_STACK": "null,nats"}
COMMANDS = {
    "stats": ["stats"],
    "failed": ["failed"],
    "retry": ["retry", "job-1"],
    "forget": ["forget", "job-1"],
    "flush": ["flush", "--yes"],
    "work": ["work", "--max-time", "1s"],
}


@pytest.mark.parametrize("connection", ["nats", "websocket", "stack"])
def test_queues_of_another_driver_are_used(run, environment, with_queues, connection):
    with_queues(lambda store: _fail(store, _failed(1)))
    env = {**environment, **WITHOUT_QUEUES}
    shown = run("failed", "--connection", connection, "--json", env=env)
    assert shown.returncode == 0, shown.stderr
    assert [job["id"] for job in json.loads(shown.stdout)] == ["job-1"]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("connection", ["nats", "stack"])
def test_no_server_is_started_for_the_queues_of_another_driver(
    run, environment, tmp_path, connection, command
):
    folder = tmp_path / "nats"
    env = {**environment, **WITHOUT_QUEUES, "NATS_URL": "", "BROADCAST_NATS_DATA": str(folder)}
    shown = run(*COMMANDS[command], "--connection", connection, env=env)
    assert shown.returncode == 1
    assert f"no embedded nats-server is running on {folder}" in shown.stderr
    assert not folder.exists()


@pytest.mark.parametrize("connection", ["nats", "stack"])
def test_other_driver_that_refuses_connections_is_reported_at_once(run, environment, connection):
    away = {"NATS_URL": "nats://127.0.0.1:1", "BROADCAST_CONNECT_TIMEOUT": "60"}
    env = {**environment, **WITHOUT_QUEUES, **away}
    shown = run("failed", "--connection", connection, env=env, timeout=30)
    assert shown.returncode == 1
    assert "cannot connect to nats://127.0.0.1:1: connection refused; start it" in shown.stderr


def test_queues_in_the_memory_of_another_process_are_refused(run, environment):
    shown = run("failed", "--connection", "memory", env={**environment, **WITHOUT_QUEUES})
    assert shown.returncode == 2
    assert "--connection='memory': its messages do not leave the process" in shown.stderr


def test_worker_works_on_what_an_application_defines_and_says_so(run, settings):
    app = load_application(APPS / "queue_app.py")

    async def main() -> None:
        async with EventBus(settings) as bus:
            await bus.dispatch(app.WorkerWaits(n=1), app.WorkerWaits(n=2))

    asyncio.run(main())
    shown = run("work", "--app", "queue_app", "--max-jobs", "2", "--queue", " high , default ,")
    assert shown.returncode == 0, shown.stderr
    assert "working on high, default, 16 at once" in shown.stderr
    assert shown.stderr.count("event 'WorkerWaits'") == 2
    assert "2 taken, 2 done, 0 retried, 0 failed, 0 handed_back" in shown.stderr


def test_worker_that_is_idle_ends_at_a_signal(environment):
    process = subprocess.Popen(
        [sys.executable, "-c", "from eventbus.cli.app import main; main()", "queue", "work"],
        env=environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        assert any("working on default" in line for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()
