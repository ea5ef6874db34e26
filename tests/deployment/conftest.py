"""The deployment of compose/, as processes on this machine: the same files, with other addresses.

Certificates and keys are made here; hosts become 127.0.0.1 with free ports, and /run/secrets is a
folder.
"""

import functools
import os
import re
import runpy
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import trustme
import yaml

from eventbus.config import Settings
from eventbus.server import find_binary
from tests.ports import free_ports
from tests.processes import kill_group

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "compose"
ROLES = ("admin", "publisher", "edge", "worker", "cli", "backup")
SERVERS = (1, 2, 3)
READY_S = 40
HISTORY = {
    # A stream's bytes are reserved from the disk; 200 clients may all be away for some seconds.
    "BROADCAST_HISTORY_BYTES": str(16 * 1024**2),
    "BROADCAST_HISTORY_MESSAGES": "5000",
}


def read_compose(*overrides):
    """What compose.yaml says, with anchors and merges resolved, and what files beside it change.

    As Docker does it with several files (`-f`), for what these files have: mappings are joined, of
    services too, and so are lists.
    """
    read = [
        yaml.safe_load((COMPOSE / name).read_text(encoding="utf-8"))
        for name in ("compose.yaml", *overrides)
    ]
    return functools.reduce(_joined, read)


def _joined(one, other):
    if isinstance(one, dict):
        return one | {
            key: _joined(one[key], value) if key in one else value for key, value in other.items()
        }
    return [*one, *other] if isinstance(one, list) else other


class Process:
    """A child process whose output goes to a file."""

    def __init__(self, name, command, environ, folder):
        self.name = name
        self.log = folder / f"{name}.log"
        self._command = [str(part) for part in command]
        self._environ = {"PATH": os.environ["PATH"], **environ}
        self._folder = folder
        self.start()

    def start(self):
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environ, cwd=self._folder, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def send(self, number):
        self._process.send_signal(number)

    def stop(self, number=signal.SIGTERM, seconds=60):
        """Ask it to end, and wait; gives its exit code. NATS takes up to 32 s in lame duck mode."""
        if self._process.poll() is None:
            self._process.send_signal(number)
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not end:\n{self.tail()}") from None

    def kill(self):
        """Kill it and all that it has started."""
        kill_group(self._process)

    @property
    def is_running(self):
        return self._process.poll() is None

    def tail(self):
        return self.log.read_text(encoding="utf-8", errors="replace")[-4000:]

    def lines(self):
        return self.log.read_text(encoding="utf-8", errors="replace").splitlines()

    def wait_until(self, condition, seconds=READY_S):
        """Wait for what no event announces; a process that ends meanwhile is a failure."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.is_running, f"{self.name} has ended:\n{self.tail()}"
            assert time.monotonic() < deadline, f"{self.name} is not ready:\n{self.tail()}"
            time.sleep(0.05)


class Deployment:
    """The files and addresses of one deployment, and its processes."""

    files = COMPOSE
    nats_file = "nats.conf"
    """What its NATS servers are started with, of compose/nats/."""

    def __init__(self, folder, *overrides):
        """`overrides` are files of compose/ beside compose.yaml."""
        self.folder = folder
        self.secrets = folder / "secrets"
        self.secrets.mkdir()
        self.compose = read_compose(*overrides)
        self.processes = {}
        self.nats_ports, self.cluster_ports, self.monitor_ports = (
            dict(zip(SERVERS, free_ports(3), strict=True)) for _ in range(3)
        )
        self.authority = trustme.CA()
        self._make_certificates()
        self._make_logins()

    free_ports = staticmethod(free_ports)

    # Secrets

    def _make_certificates(self):
        self.authority.cert_pem.write_to_path(self.secrets / "ca.crt")
        for name in (*(f"nats-{number}" for number in SERVERS), "nginx", "redis"):
            self.make_certificate(name, "localhost", "127.0.0.1", name)
        for client in ("nginx-client", "prometheus"):
            self.make_certificate(client, f"{client}.eventbus")
        for role in (*ROLES, "system"):
            own = ("localhost", "127.0.0.1") if role == "edge" else ()
            self.make_certificate(role, f"{role}.eventbus", *own)

    def _make_logins(self):
        make = runpy.run_path(str(COMPOSE / "make_secrets.py"))["make_logins"]
        for name, content in make().items():
            (self.secrets / name).write_bytes(content)
        self.jwt_secret = (self.secrets / "jwt_secret").read_text()
        self.api_key = (self.secrets / "api_key").read_text()

    def make_certificate(self, name, *hosts):
        certificate = self.authority.issue_cert(*hosts)
        certificate.private_key_pem.write_to_path(self.secrets / f"{name}.key")
        chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
        (self.secrets / f"{name}.crt").write_bytes(chain)

    @property
    def tls(self):
        """What a client of nginx trusts."""
        return ssl.create_default_context(cafile=self.secrets / "ca.crt")

    @property
    def client_tls(self):
        """What a client of edges has, who is one of the house."""
        context = self.tls
        context.load_cert_chain(self.secrets / "prometheus.crt", self.secrets / "prometheus.key")
        return context

    # What differs from the containers

    def environment(self, service, **changes):
        """A service's environment as compose.yaml has it, its addresses being this machine's."""
        return self._moved(self.compose["services"][service]["environment"]) | changes

    def _moved(self, environ):
        moved = {}
        for name, value in environ.items():
            text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(value))
            text = text.replace("/run/secrets/", f"{self.secrets}/")
            for number in SERVERS:
                text = text.replace(f"nats-{number}:4222", f"127.0.0.1:{self.nats_ports[number]}")
                text = text.replace(
                    f"nats-{number}:6222", f"127.0.0.1:{self.cluster_ports[number]}"
                )
            moved[name] = text
        return moved

    def role(self, role, **changes):
        """The environment of a process that logs in as a kind of user."""
        return self.environment("setup") | {
            "NATS_CERT": str(self.secrets / f"{role}.crt"),
            "NATS_KEY": str(self.secrets / f"{role}.key"),
            "NATS_NKEY": str(self.secrets / f"{role}.nk"),
            "NATS_INBOX_PREFIX": f"_INBOX.{role}",
            "BROADCAST_CONNECT_TIMEOUT": "30",  # three servers elect leaders on a busy machine
            **HISTORY,
            **changes,
        }

    def settings(self, role, **changes):
        """Settings of a bus that logs in as a kind of user."""
        return Settings.from_env(self.role(role, **changes))

    # Processes

    def start(self, name, command, environ):
        process = self.processes[name] = Process(name, command, environ, self.folder)
        return process

    def start_nats(self, number, *, wait=False, **more):
        """`more` are variables of its file beside those of nats.conf."""
        data = self.folder / f"data-{number}"
        data.mkdir(exist_ok=True)
        self.give_nats_its_certificate(number)
        environ = self.environment(f"nats-{number}") | {
            "NATS_PORT": str(self.nats_ports[number]),
            "NATS_CLUSTER_PORT": str(self.cluster_ports[number]),
            "NATS_MONITOR_PORT": str(self.monitor_ports[number]),
            "NATS_DATA": str(data),
            "NATS_CERT": str(self.folder / f"nats-{number}" / "nats.crt"),
            "NATS_KEY": str(self.folder / f"nats-{number}" / "nats.key"),
        }
        environ |= self.nats_users | more
        command = [find_binary(), "-c", COMPOSE / "nats" / self.nats_file]
        process = self.start(f"nats-{number}", command, environ)
        if wait:
            process.wait_until(lambda: self.nats_is_healthy(number))
        return process

    @property
    def nats_users(self):
        """The public keys of NATS's users."""
        lines = (self.secrets / "nats.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def give_nats_its_certificate(self, number):
        """As compose.yaml mounts it: by a name that is the same for all three."""
        folder = self.folder / f"nats-{number}"
        folder.mkdir(exist_ok=True)
        for suffix in ("crt", "key"):
            made = self.secrets / f"nats-{number}.{suffix}"
            (folder / f"nats.{suffix}").write_bytes(made.read_bytes())

    def nats_is_healthy(self, number):
        return self._answers(f"http://127.0.0.1:{self.monitor_ports[number]}/healthz")

    def start_cluster(self):
        for number in SERVERS:
            self.start_nats(number)
        for number in SERVERS:
            self.processes[f"nats-{number}"].wait_until(
                lambda number=number: self.nats_is_healthy(number)
            )

    def eventbus(self, *arguments, environ, seconds=60):
        """Run a command to its end."""
        return subprocess.run(
            [sys.executable, "-c", "from eventbus.cli.app import main; main()", *arguments],
            env={"PATH": os.environ["PATH"], **environ},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def start_edge(self, name, port, **changes):
        environ = self.environment("edge") | {
            "BROADCAST_WEBSOCKET_HOST": "127.0.0.1",
            "BROADCAST_WEBSOCKET_PORT": str(port),
            "BROADCAST_TRUSTED_PROXIES": "127.0.0.1",
            **HISTORY,
            "BROADCAST_DRAIN_TIME": "2",
            **changes,
        }
        edge = self.start(name, [sys.executable, "-m", "eventbus_edge"], environ)
        # As `eventbus_edge.health` asks: its caller knows which node it asks.
        anyone = ssl.create_default_context()
        anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
        url = f"https://127.0.0.1:{port}/readyz"
        edge.wait_until(lambda: self._status(url, anyone) == 200)
        return edge

    def start_nginx(self, port, upstreams, *, name="nginx", answers=200):
        folder = self.folder / name
        folder.mkdir()
        values = self.environment("nginx")
        values |= {
            "NGINX_PORT": str(port),
            "NGINX_TEMP": str(folder),
            "NGINX_UPSTREAM": " ".join(
                values["NGINX_UPSTREAM"].replace("edge:8080", f"127.0.0.1:{port}")
                for port in upstreams
            ),
        }
        template = (COMPOSE / "nginx" / "nginx.conf.template").read_text(encoding="utf-8")
        text = re.sub(r"\$\{(NGINX_\w+)\}", lambda match: values[match[1]], template)
        (folder / "nginx.conf").write_text(text, encoding="utf-8")
        command = [
            word.replace("/tmp/", f"{folder}/")
            for word in self.compose["services"]["nginx"]["command"]
        ]
        command += ["-e", "stderr", "-p", folder]
        nginx = self.start(name, command, {})
        nginx.wait_until(lambda: self._status(f"https://localhost:{port}/readyz") == answers)
        return nginx

    def _answers(self, url):
        return self._status(url) == 200

    def _status(self, url, tls=None):
        """The status of an answer; None when there is none."""
        tls = tls or (self.tls if url.startswith("https") else None)
        try:
            with urllib.request.urlopen(url, timeout=3, context=tls) as response:
                return response.status
        except urllib.error.HTTPError as exc:
            with exc:
                return exc.code
        except OSError:
            return None

    def stop(self):
        for process in reversed(self.processes.values()):
            process.kill()


@pytest.fixture(scope="session")
def new_deployment():
    """Makes a deployment in a folder, of which nothing runs yet; stop() is the caller's."""
    return Deployment


@pytest.fixture(scope="module")
def deployment(tmp_path_factory):
    """A cluster of three NATS servers whose streams are made; edges and nginx are a test's own."""
    made = Deployment(tmp_path_factory.mktemp("deployment"))
    try:
        made.start_cluster()
        done = made.eventbus("setup", environ=made.role("admin"))
        assert done.returncode == 0, done.stderr
        yield made
    finally:
        made.stop()
