"""The files of compose/, as far as they can be judged without a Docker engine."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from importlib import resources
from pathlib import Path

import jsonschema
import promql_parser
import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from eventbus.config import Settings
from eventbus.environment import FILE_SUFFIX, variables
from eventbus.server import find_binary
from eventbus_edge.config import EdgeSettings
from eventbus_edge.metrics.metrics import Metrics
from eventbus_edge.metrics.readers import ReadMetric
from eventbus_edge.process.listening import BACKLOG
from tests.ports import free_ports
from tests.processes import kill_group

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "compose"
PROMETHEUS = COMPOSE / "prometheus"
GRAFANA = COMPOSE / "grafana"
FILES = sorted(path.name for path in COMPOSE.glob("compose*.yaml"))
WHOLE = ["compose.yaml", "compose.dev.yaml"]
"""Those that work alone; others are added to one of them."""

OF_PROMETHEUS = {"job", "instance", "le"}
"""Labels beside a metric's own."""

OF_GRAFANA = {"$__rate_interval": "5m", "$__range": "1h"}
"""Variables that Grafana replaces by a duration before Prometheus sees them."""


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def services(name):
    return read(COMPOSE / name)["services"].items()


def mounts(name):
    """Each file or folder of compose/ that a service mounts, and where."""
    for _, service in services(name):
        for volume in service.get("volumes", ()):
            source, target = volume.split(":")[:2]
            if source.startswith("."):
                yield COMPOSE / source, target


@pytest.fixture(scope="module")
def specification():
    folder = resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    schema = json.loads((folder / "compose-spec.json").read_text(encoding="utf-8"))
    kind = jsonschema.validators.validator_for(schema)
    kind.check_schema(schema)
    return kind(schema)


# Compose


def test_files_are_those_known_here():
    assert set(FILES) > set(WHOLE)


@pytest.mark.parametrize("name", FILES)
def test_file_is_what_the_compose_specification_allows(name, specification):
    assert [error.message for error in specification.iter_errors(read(COMPOSE / name))] == []


def test_the_specification_refuses_what_is_misspelt(specification):
    content = read(COMPOSE / "compose.yaml")
    content["services"]["edge"]["comand"] = ["edge", "run"]
    assert not specification.is_valid(content)


@pytest.mark.parametrize("name", FILES)
def test_mounted_files_exist_and_are_read_only(name):
    for source, _ in mounts(name):
        assert source.exists(), source
    for _, service in services(name):
        for volume in service.get("volumes", ()):
            assert not volume.startswith(".") or volume.endswith(":ro")


@pytest.mark.parametrize("name", WHOLE)
def test_volumes_and_networks_that_services_use_are_declared(name):
    content = read(COMPOSE / name)
    for service in content["services"].values():
        named = {volume.split(":")[0] for volume in service.get("volumes", ())}
        assert {one for one in named if not one.startswith(".")} <= content["volumes"].keys()
        assert set(service.get("networks", ())) <= content.get("networks", {}).keys()


@pytest.mark.parametrize("name", FILES)
def test_secrets_are_declared_and_those_that_are_declared_are_used(name):
    content = read(COMPOSE / name)
    used = {
        secret if isinstance(secret, str) else secret["source"]
        for service in content["services"].values()
        for secret in service.get("secrets", ())
    }
    assert used == content.get("secrets", {}).keys()


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_that_a_service_looks_for_among_its_secrets_is_given_to_it(name):
    for service_name, service in services(name):
        given = {
            secret if isinstance(secret, str) else secret["target"]
            for secret in service.get("secrets", ())
        }
        body = [*service.get("environment", {}).values(), *service.get("command", ())]
        wanted = {re.sub("^/run/secrets/", "", text) for text in body if "/run/secrets/" in text}
        assert wanted <= given, service_name


def test_every_secret_and_file_of_variables_is_made(tmp_path):
    folder = tmp_path / "secrets"
    command = [sys.executable, COMPOSE / "make_secrets.py", "--folder", folder]
    subprocess.run(command, check=True, capture_output=True, timeout=150)
    wanted = set()
    for name in FILES:
        wanted |= {secret["file"] for secret in read(COMPOSE / name).get("secrets", {}).values()}
        for _, service in services(name):
            wanted |= set(service.get("env_file", ()))
    assert len(wanted) > 20
    assert [file for file in wanted if not (folder.parent / file).is_file()] == []


@pytest.mark.parametrize("name", FILES)
def test_every_variable_of_eventbus_is_a_setting(name):
    known = [variable for struct in (Settings, EdgeSettings) for variable in variables(struct)]
    allowed = {variable.name for variable in known}
    allowed |= {f"{variable.name}{FILE_SUFFIX}" for variable in known if variable.secret}
    found = [service for key, service in services(name) if key in {"edge", "setup"}]
    assert found
    for service in found:
        assert service["environment"].keys() <= allowed


@pytest.mark.parametrize("name", FILES)
def test_values_of_variables_are_text(name):
    """YAML would read true and 1e3 differently."""
    for _, service in services(name):
        assert all(isinstance(value, str) for value in service.get("environment", {}).values())


@pytest.mark.parametrize("name", FILES)
def test_services_only_depend_on_the_health_of_services_with_a_health_check(name):
    # What one file adds to is in compose.yaml.
    known = read(COMPOSE / "compose.yaml")["services"] | dict(services(name))
    waits = 0
    for _, service in services(name):
        for other, how in service.get("depends_on", {}).items():
            check = known[other].get("healthcheck", {})
            waits += 1
            if how["condition"] == "service_healthy":
                assert check.get("test"), other
            else:
                assert known[other]["restart"].startswith("on-failure"), "it must come to an end"
    assert waits or name not in WHOLE


CONFINED = {"read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"]}


@pytest.mark.parametrize("name", sorted(dict(services("compose.yaml"))))
def test_service_may_write_to_its_own_places_and_do_nothing_to_its_machine(name):
    service = dict(services("compose.yaml"))[name]
    assert service.items() >= CONFINED.items()
    assert not service.keys() & {"privileged", "cap_add", "network_mode", "pid", "devices"}


def test_a_command_that_may_be_process_1_for_seconds_has_an_init():
    """Process 1 does not get signals that it does not handle (yet)."""
    for name in WHOLE:
        for key, service in services(name):
            assert service.get("init") or service["image"] != "eventbus:latest", key


def test_connections_have_descriptors_enough():
    nginx, edge = (dict(services("compose.yaml"))[name] for name in ("nginx", "edge"))
    template = (COMPOSE / "nginx" / "nginx.conf.template").read_text(encoding="utf-8")
    [most] = re.findall(r"worker_rlimit_nofile (\d+);", template)
    [connections] = re.findall(r"worker_connections (\d+);", template)
    assert int(connections) < int(most) <= nginx["ulimits"]["nofile"]["hard"]
    [backlog] = re.findall(r"listen \S+ ssl backlog=(\d+);", template)
    assert int(backlog) == BACKLOG
    changed = edge["environment"].get("BROADCAST_MAX_CONNECTIONS")
    assert int(changed or EdgeSettings().max_connections) < edge["ulimits"]["nofile"]["hard"]


# The file for development


def wait_for(address, process, log):
    deadline = time.monotonic() + 40
    while True:
        assert process.poll() is None, log.read_text(encoding="utf-8")
        assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
        try:
            with urllib.request.urlopen(address, timeout=3) as response:
                return response.status
        except OSError:
            time.sleep(0.05)


@pytest.fixture
def start(tmp_path):
    """Starts a process that is ended with the test; gives it, and its log."""
    processes = []

    def begin(name, command, environ=None):
        path = tmp_path / f"{name}.log"
        environ = {"PATH": os.environ["PATH"], **(environ or {})}
        with path.open("wb") as log:
            process = subprocess.Popen(
                command, env=environ, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True
            )
        processes.append(process)
        return process, path

    yield begin
    for process in reversed(processes):
        kill_group(process)


EVENTBUS = [sys.executable, "-c", "from eventbus.cli.app import main; main()"]


def test_edge_of_development_runs_on_a_nats_server_with_the_documented_arguments(start, tmp_path):
    parts = dict(services("compose.dev.yaml"))
    port, monitor, edge_port = free_ports(3)
    moved = {"/data": str(tmp_path / "data"), "8222": str(monitor)}
    arguments = [moved.get(word, word) for word in parts["nats"]["command"]]
    nats = [find_binary(), *arguments, "--addr", "127.0.0.1", "--port", str(port)]
    wait_for(f"http://127.0.0.1:{monitor}/healthz?js-enabled-only=true", *start("nats", nats))

    environ = parts["edge"]["environment"] | {
        "BROADCAST_WEBSOCKET_HOST": "127.0.0.1",
        "BROADCAST_WEBSOCKET_PORT": str(edge_port),
    }
    environ["NATS_URL"] = environ["NATS_URL"].replace("nats:4222", f"127.0.0.1:{port}")
    edge = start("edge", [*EVENTBUS, *parts["edge"]["command"]], environ)
    assert wait_for(f"http://127.0.0.1:{edge_port}/readyz", *edge) == 200
    with urllib.request.urlopen(f"http://127.0.0.1:{edge_port}/metrics", timeout=30) as response:
        assert b"eventbus_edge_bus_connected 1.0" in response.read()


def test_development_settings_are_refused_in_production():
    environ = dict(services("compose.dev.yaml"))["edge"]["environment"]
    done = subprocess.run(
        [*EVENTBUS, "edge", "run"],
        env={"PATH": os.environ["PATH"], **environ, "BROADCAST_ENVIRONMENT": "production"},
        capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "JWT_SECRET" in done.stderr


def test_ports_of_development_are_open_to_this_machine_alone():
    ports = [port for _, one in services("compose.dev.yaml") for port in one.get("ports", ())]
    assert len(ports) >= 3
    assert all(port.startswith("127.0.0.1:") for port in ports)


# Prometheus


def samples():
    """Each sample's name, with the metric's type and labels."""
    found = {}
    for metric in vars(Metrics()).values():
        if isinstance(metric, MetricWrapperBase | ReadMetric):
            [family] = metric.describe()
            suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
            for suffix in suffixes.get(family.type, [""]):
                labels = set(getattr(metric, "_labelnames", ()))
                found[family.name + suffix] = family.type, labels
    return found


def nodes_of(expression):
    """All parts of an expression, by Prometheus's own grammar; raises ValueError."""
    found = []
    promql_parser.walk(promql_parser.parse(expression), pre_visit=found.append)
    return found


def check_expression(expression):
    known = samples()
    nodes = nodes_of(expression)
    selectors = [node for node in nodes if isinstance(node, promql_parser.VectorSelector)]
    windows = [n.vector_selector for n in nodes if isinstance(n, promql_parser.MatrixSelector)]
    assert selectors
    labels = set(OF_PROMETHEUS)
    for selector in selectors:
        assert selector.name in known, expression
        kind, own = known[selector.name]
        asked = {matcher.name for matcher in selector.matchers.matchers}
        assert asked <= own | OF_PROMETHEUS, expression
        in_window = str(selector) in map(str, windows)
        assert in_window == (kind != "gauge"), "counters want a rate, gauges none"
        labels |= own
    for node in nodes:
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            assert set(node.modifier.labels) <= labels, expression


def rules():
    return [rule for group in read(PROMETHEUS / "alerts.yml")["groups"] for rule in group["rules"]]


def test_prometheus_asks_every_edge_for_its_metrics():
    content = read(PROMETHEUS / "prometheus.yml")
    [job] = content["scrape_configs"]
    [found] = job["dns_sd_configs"]
    edge = dict(services("compose.yaml"))["edge"]
    assert found["names"] == ["edge"]
    assert str(found["port"]) == edge["environment"]["BROADCAST_WEBSOCKET_PORT"]
    assert edge["environment"]["BROADCAST_METRICS_OPEN"] == "true"
    assert set(edge["networks"]) & set(dict(services("compose.yaml"))["prometheus"]["networks"])
    assert (found["type"], job["metrics_path"]) == ("A", "/metrics")


def test_prometheus_shows_edges_a_certificate_and_checks_theirs():
    [job] = read(PROMETHEUS / "prometheus.yml")["scrape_configs"]
    tls = dict(job["tls_config"])
    assert job["scheme"] == "https"
    nginx = (COMPOSE / "nginx" / "nginx.conf.template").read_text(encoding="utf-8")
    assert f"proxy_ssl_name {tls.pop('server_name')};" in nginx
    given = set(dict(services("compose.yaml"))["prometheus"]["secrets"])
    assert {path.removeprefix("/run/secrets/") for path in tls.values()} == given
    assert tls.keys() == {"ca_file", "cert_file", "key_file"}


def test_rules_that_prometheus_reads_are_mounted_beside_its_configuration():
    targets = {target: source for source, target in mounts("compose.yaml")}
    assert targets["/etc/prometheus/prometheus.yml"] == PROMETHEUS / "prometheus.yml"
    for file in read(PROMETHEUS / "prometheus.yml")["rule_files"]:
        assert targets[f"/etc/prometheus/{file}"] == PROMETHEUS / file


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_alert_asks_for_what_an_edge_has(rule):
    check_expression(rule["expr"])
    assert rule.keys() <= {"alert", "expr", "for"}


def test_alerts_are_those_of_the_page_on_operating():
    page = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    [block] = re.findall(r"### Alerts worth having\n\n```yaml\n(.*?)```", page, re.DOTALL)
    assert yaml.safe_load(block) == read(PROMETHEUS / "alerts.yml")


@pytest.mark.parametrize(
    "expression",
    [
        "eventbus_edge_conections",
        "eventbus_edge_closes_total",
        "rate(eventbus_edge_connections[5m])",
        'rate(eventbus_edge_closes_total{reason="x"}[5m])',
        "sum by (reason) (rate(eventbus_edge_closes_total[5m]))",
    ],
)
def test_an_expression_that_no_metric_answers_is_found(expression):
    with pytest.raises(AssertionError):
        check_expression(expression)


# Grafana


def dashboard():
    return json.loads((GRAFANA / "dashboards" / "eventbus.json").read_text(encoding="utf-8"))


def expressions(panel):
    for target in panel["targets"]:
        expression = target["expr"]
        for name, value in OF_GRAFANA.items():
            expression = expression.replace(name, value)
        yield expression


@pytest.mark.parametrize("panel", dashboard()["panels"], ids=lambda panel: panel["title"])
def test_panel_asks_the_source_that_is_there_for_what_an_edge_has(panel):
    [source] = read(GRAFANA / "provisioning" / "datasources" / "prometheus.yml")["datasources"]
    assert panel["datasource"]["uid"] == source["uid"]
    for target, expression in zip(panel["targets"], expressions(panel), strict=True):
        check_expression(expression)
        assert target["datasource"]["uid"] == source["uid"]
        legend = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        grouped = re.findall(r"by \(([\w, ]+)\)", expression)
        assert legend <= {label for labels in grouped for label in re.split(r",\s*", labels)}


def test_dashboard_shows_what_matters():
    asked = " ".join(text for panel in dashboard()["panels"] for text in expressions(panel))
    for name in (
        "connections", "messages_in_total", "messages_out_total", "closes_total",
        "delivery_latency_seconds_bucket", "dropped_frames_total", "presence_members",
        "bus_connected", "bus_lag_seconds", "memory_bytes", "webhook_posts_total", "webhook_queue",
    ):  # fmt: skip
        assert f"eventbus_edge_{name}{{" in asked
    for quantile in ("0.5", "0.95", "0.99"):
        assert f"histogram_quantile({quantile}, " in asked


def test_panels_do_not_lie_on_each_other():
    taken = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    ids = [panel["id"] for panel in dashboard()["panels"]]
    assert len(set(ids)) == len(ids)


def test_variable_of_the_dashboard_is_a_metric_that_exists():
    [variable] = dashboard()["templating"]["list"]
    [metric, label] = re.fullmatch(
        r"label_values\((\w+), (\w+)\)", variable["query"]["query"]
    ).groups()
    assert metric in samples()
    assert (label, variable["name"]) == ("instance", "instance")


def test_grafana_finds_the_source_and_the_dashboards_where_compose_mounts_them():
    parts = dict(services("compose.yaml"))
    [source] = read(GRAFANA / "provisioning" / "datasources" / "prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert set(parts["grafana"]["networks"]) & set(parts["prometheus"]["networks"])
    [provider] = read(GRAFANA / "provisioning" / "dashboards" / "eventbus.yml")["providers"]
    targets = {target: path for path, target in mounts("compose.yaml")}
    assert targets[provider["options"]["path"]] == GRAFANA / "dashboards"
    assert targets["/etc/grafana/provisioning"] == GRAFANA / "provisioning"
    interval = read(PROMETHEUS / "prometheus.yml")["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == interval
