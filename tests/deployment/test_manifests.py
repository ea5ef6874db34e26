"""The manifests for Kubernetes and the units for systemd, by their schemas and by what they run."""

import asyncio
import configparser
import contextlib
import json
import re
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from eventbus.config import Settings
from eventbus.environment import FILE_SUFFIX, variables
from eventbus.server import SYNC_TAG, find_binary
from eventbus_edge.app import create_app
from eventbus_edge.config import EdgeSettings
from eventbus_edge.metrics.metrics import Metrics
from tests.ports import free_port

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
SYSTEMD = DEPLOY / "systemd"
UNITS = ("eventbus-edge", "eventbus-worker")
WORKER_END_S = 15
"""What `eventbus_edge.process.supervisor` gives a worker beyond the drain."""
UNIT_HARDENING = {
    "DynamicUser": "yes",
    "NoNewPrivileges": "yes",
    "PrivateTmp": "yes",
    "ProtectHome": "yes",
    "ProtectSystem": "strict",
    "CapabilityBoundingSet": "",
}


def documents(path):
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


MANIFESTS = {
    (document["kind"], document["metadata"]["name"]): document
    for path in sorted(KUBERNETES.glob("*.yaml"))
    if path.name != "kustomization.yaml"
    for document in documents(path)
}
COMPONENTS = ("gateway", "ingress-nginx")
"""Ways to the edges from outside, of which an overlay takes one."""
OF_COMPONENTS = {
    document["kind"]: document
    for component in COMPONENTS
    for path in (KUBERNETES / component).glob("*.yaml")
    for document in documents(path)
    if path.name != "kustomization.yaml"
}
WORKLOADS = {key: value for key, value in MANIFESTS.items() if key[0] in {"Deployment", "Job"}}


def settings_names():
    declared = [*variables(Settings), *variables(EdgeSettings)]
    return {each.name for each in declared} | {
        f"{each.name}{FILE_SUFFIX}" for each in declared if each.secret
    }


def pod_of(workload):
    return workload["spec"]["template"]["spec"]


def environment_of(workload):
    """What a workload's container has, config maps included."""
    (container,) = pod_of(workload)["containers"]
    found = {}
    for source in container["envFrom"]:
        found |= MANIFESTS["ConfigMap", source["configMapRef"]["name"]]["data"]
    return found | {each["name"]: each["value"] for each in container.get("env", [])}


@pytest.mark.parametrize("version", ["1.34", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("key", MANIFESTS, ids="-".join)
def test_manifest_is_what_kubernetes_takes(key, version):
    kubernetes_validate.validate(MANIFESTS[key], version, strict=True)


def test_misspelt_key_is_refused_by_the_schema():
    wrong = MANIFESTS["Service", "eventbus-edge"] | {"specs": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.34", strict=True)


def test_kustomization_has_every_file_but_the_example():
    (kustomization,) = documents(KUBERNETES / "kustomization.yaml")
    files = {path.name for path in KUBERNETES.iterdir() if path.is_file()}
    assert set(kustomization["resources"]) == files - {"kustomization.yaml", "secret.example.yaml"}


@pytest.mark.parametrize("component", COMPONENTS)
def test_component_has_every_file_of_its_folder(component):
    (kustomization,) = documents(KUBERNETES / component / "kustomization.yaml")
    assert kustomization["kind"] == "Component"
    files = {path.name for path in (KUBERNETES / component).iterdir()}
    assert set(kustomization["resources"]) == files - {"kustomization.yaml"}


@pytest.mark.parametrize("version", ["1.34", kubernetes_validate.latest_version()])
def test_ingress_is_what_kubernetes_takes(version):
    kubernetes_validate.validate(OF_COMPONENTS["Ingress"], version, strict=True)


def test_ingress_goes_to_the_edges_as_nginx_of_compose_does():
    """An annotation is a directive of nginx by another name."""
    template = (DEPLOY.parent / "compose" / "nginx" / "nginx.conf.template").read_text("utf-8")
    directives = dict(re.findall(r"^\s+((?:proxy|client)_\w+) +([^;$]+);", template, re.MULTILINE))
    directives["proxy_body_size"] = directives["client_max_body_size"]
    prefix = "nginx.ingress.kubernetes.io/"
    annotations = {
        name.removeprefix(prefix).replace("-", "_"): value
        for name, value in OF_COMPONENTS["Ingress"]["metadata"]["annotations"].items()
    }
    assert annotations.pop("backend_protocol") == "HTTPS"
    namespace, _, _ = annotations.pop("proxy_ssl_secret").partition("/")
    (kustomization,) = documents(KUBERNETES / "kustomization.yaml")
    assert namespace == kustomization["namespace"]
    # In annotations times are seconds, without a unit.
    wanted = {name: re.sub(r"^(\d+)s$", r"\1", directives[name]) for name in annotations}
    assert annotations == wanted
    assert {"proxy_ssl_verify", "proxy_ssl_name", "proxy_read_timeout"} <= annotations.keys()


def test_gateway_shows_edges_a_certificate_and_checks_theirs():
    assert OF_COMPONENTS["Gateway"]["spec"]["tls"]["backend"]["clientCertificateRef"]["name"]
    policy = OF_COMPONENTS["BackendTLSPolicy"]["spec"]
    assert policy["validation"]["hostname"] == "edge.eventbus"
    (target,) = policy["targetRefs"]
    assert (target["kind"], target["name"]) in MANIFESTS
    (parent,) = OF_COMPONENTS["HTTPRoute"]["spec"]["parentRefs"]
    assert parent["name"] == OF_COMPONENTS["Gateway"]["metadata"]["name"]
    (listener,) = OF_COMPONENTS["Gateway"]["spec"]["listeners"]
    assert parent["sectionName"] == listener["name"]
    assert OF_COMPONENTS["HTTPRoute"]["spec"]["hostnames"] == [listener["hostname"]]


def test_gateway_lets_no_stream_end_by_its_length():
    rules = OF_COMPONENTS["HTTPRoute"]["spec"]["rules"]
    timeouts = {
        match["path"]["value"]: rule["timeouts"]["request"]
        for rule in rules
        for match in rule["matches"]
    }
    assert (timeouts["/ws"], timeouts["/sse"]) == ("0s", "0s")  # no bound: Gateway API, GEP-1742


def test_clients_reach_every_address_of_an_edge_but_those_for_the_cluster():
    app = create_app(EdgeSettings(), Settings(driver="memory"))
    routes = {resource.canonical for resource in app.router.resources()}
    (rule,) = OF_COMPONENTS["Ingress"]["spec"]["rules"]
    by_ingress = {each["path"] for each in rule["http"]["paths"]}
    by_gateway = {
        match["path"]["value"]
        for rule in OF_COMPONENTS["HTTPRoute"]["spec"]["rules"]
        for match in rule["matches"]
    }
    assert by_ingress == by_gateway
    outside = {route for route in routes if f"/{route.split('/')[1]}" not in by_gateway}
    assert outside == {"/healthz", "/readyz", "/metrics"}
    service = MANIFESTS["Service", "eventbus-edge"]
    (port,) = service["spec"]["ports"]
    for path in rule["http"]["paths"]:
        backend = path["backend"]["service"]
        assert backend == {"name": service["metadata"]["name"], "port": {"name": port["name"]}}
    for each in OF_COMPONENTS["HTTPRoute"]["spec"]["rules"]:
        (backend,) = each["backendRefs"]
        assert backend == {"name": service["metadata"]["name"], "port": port["port"]}


def test_gateways_namespace_takes_the_place_of_that_of_ingress_nginx():
    (kustomization,) = documents(KUBERNETES / "gateway" / "kustomization.yaml")
    (patch,) = kustomization["patches"]
    (operation,) = yaml.safe_load(patch["patch"])
    assert (patch["target"]["kind"], patch["target"]["name"]) in MANIFESTS
    found = MANIFESTS[patch["target"]["kind"], patch["target"]["name"]]
    for step in operation["path"].strip("/").split("/"):
        found = found[int(step) if step.isdigit() else step]
    assert found == {"kubernetes.io/metadata.name": "ingress-nginx"}
    assert found.keys() == operation["value"].keys()


@pytest.mark.parametrize("key", WORKLOADS, ids="-".join)
def test_environment_has_declared_settings_alone_and_they_are_understood(key, tmp_path):
    environ = environment_of(WORKLOADS[key])
    assert not set(environ) - settings_names()
    for name in environ:
        if environ[name].startswith("/run/secrets/"):
            (tmp_path / name).write_text("x" * 48)
            environ[name] = str(tmp_path / name)
    Settings.from_env(environ)
    EdgeSettings.from_env(environ)


@pytest.mark.parametrize("key", WORKLOADS, ids="-".join)
def test_files_that_settings_name_are_in_the_mounted_secret(key):
    (container,) = pod_of(WORKLOADS[key])["containers"]
    volumes = {each["name"]: each for each in pod_of(WORKLOADS[key])["volumes"]}
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    secret = MANIFESTS["Secret", volumes["secrets"]["secret"]["secretName"]]["stringData"]
    wanted = {
        value
        for value in environment_of(WORKLOADS[key]).values()
        if value.startswith("/run/secrets/")
    }
    assert wanted == {f"{mounts['secrets']}/{name}" for name in secret}
    assert not any(secret.values())


@pytest.mark.parametrize("key", WORKLOADS, ids="-".join)
def test_pods_run_without_rights(key):
    pod = pod_of(WORKLOADS[key])
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    dockerfile = (DEPLOY.parent / "Dockerfile").read_text(encoding="utf-8").splitlines()
    assert f"USER {pod['securityContext']['runAsUser']}" in dockerfile
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not pod["automountServiceAccountToken"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_probes_ask_what_an_edge_answers():
    app = create_app(EdgeSettings(), Settings(driver="memory"))
    routes = {resource.canonical for resource in app.router.resources()}
    (container,) = pod_of(MANIFESTS["Deployment", "eventbus-edge"])["containers"]
    probes = {
        name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")
    }
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/healthz",
        "liveness": "/healthz",
        "readiness": "/readyz",
    }
    assert {probe["path"] for probe in probes.values()} <= routes
    (port,) = container["ports"]
    environ = environment_of(MANIFESTS["Deployment", "eventbus-edge"])
    assert str(port["containerPort"]) == environ["BROADCAST_WEBSOCKET_PORT"]
    (service_port,) = MANIFESTS["Service", "eventbus-edge"]["spec"]["ports"]
    assert {probe["port"] for probe in probes.values()} == {port["name"]}
    assert service_port["targetPort"] == port["name"]


def test_pods_are_given_the_time_to_drain():
    edge = MANIFESTS["Deployment", "eventbus-edge"]
    (container,) = pod_of(edge)["containers"]
    sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = float(environment_of(edge)["BROADCAST_DRAIN_TIME"])
    assert pod_of(edge)["terminationGracePeriodSeconds"] >= sleep + drain + WORKER_END_S
    worker = MANIFESTS["Deployment", "eventbus-worker"]
    (container,) = pod_of(worker)["containers"]
    grace = float(container["args"][container["args"].index("--grace") + 1])
    assert pod_of(worker)["terminationGracePeriodSeconds"] > grace


def test_selectors_match_labels():
    templates = {
        name: workload["spec"]["template"]["metadata"]["labels"]
        for (_, name), workload in WORKLOADS.items()
    }
    selectors = {
        ("Service", "eventbus-edge"): MANIFESTS["Service", "eventbus-edge"]["spec"]["selector"]
    }
    for kind in ("Deployment", "PodDisruptionBudget"):
        for name in UNITS:
            selectors[kind, name] = MANIFESTS[kind, name]["spec"]["selector"]["matchLabels"]
    for name in UNITS:
        for spread in pod_of(MANIFESTS["Deployment", name])["topologySpreadConstraints"]:
            selectors[spread["topologyKey"], name] = spread["labelSelector"]["matchLabels"]
    policy = MANIFESTS["NetworkPolicy", "eventbus-edge"]["spec"]["podSelector"]["matchLabels"]
    selectors["NetworkPolicy", "eventbus-edge"] = policy
    for (_, name), selector in selectors.items():
        matched = {each for each, labels in templates.items() if selector.items() <= labels.items()}
        assert matched == {name}
    everything = MANIFESTS["NetworkPolicy", "eventbus"]["spec"]["podSelector"]["matchLabels"]
    assert all(everything.items() <= labels.items() for labels in templates.values())


def test_edges_are_scaled_by_a_metric_that_they_have():
    spec = MANIFESTS["HorizontalPodAutoscaler", "eventbus-edge"]["spec"]
    target = spec["scaleTargetRef"]
    assert (target["kind"], target["name"]) in MANIFESTS
    metric, processor = spec["metrics"]
    text = Metrics().exposition().decode()
    assert f"\n# TYPE {metric['pods']['metric']['name']} gauge\n" in text
    edge = MANIFESTS["Deployment", "eventbus-edge"]
    most = int(environment_of(edge)["BROADCAST_MAX_CONNECTIONS"])
    assert int(metric["pods"]["target"]["averageValue"]) < most
    # One process has one core: with less than its whole it is still quick.
    assert processor["resource"]["name"] == "cpu"
    assert processor["resource"]["target"]["averageValue"] == "600m"
    assert environment_of(edge)["BROADCAST_WORKERS"] == "1"
    assert spec["behavior"]["scaleDown"]["stabilizationWindowSeconds"] >= 300
    assert "replicas" not in edge["spec"]


def unit(name):
    """A unit's keys, each with all its values."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str
    text = (SYSTEMD / name).read_text(encoding="utf-8")
    parser.read_string(text)
    pairs = re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE)
    assert {key for section in parser.sections() for key in parser[section]} == {
        key for key, _ in pairs
    }
    found = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return found


def assignments(lines):
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize("name", UNITS)
def test_unit_has_few_rights_and_comes_back(name):
    keys = unit(f"{name}.service")
    for key, value in UNIT_HARDENING.items():
        assert keys[key] == [value], key
    assert keys["StateDirectory"] == [name]
    assert keys["Restart"] == ["on-failure"]
    assert keys["LimitNOFILE"] == ["65536"]
    assert keys["KillSignal"] == ["SIGTERM"]
    # Workers of an edge would end at once by a second SIGTERM, were the group signalled too.
    assert keys["KillMode"] == ["mixed"]


def test_units_are_given_the_time_to_drain():
    edge, worker = (unit(f"{name}.service") for name in UNITS)
    drain = float(assignments(edge["Environment"])["BROADCAST_DRAIN_TIME"])
    assert float(edge["TimeoutStopSec"][0]) > drain + WORKER_END_S
    (command,) = worker["ExecStart"]
    assert float(worker["TimeoutStopSec"][0]) > float(re.search(r"--grace (\d+)", command)[1])


@pytest.mark.parametrize("name", [*(f"{name}.service" for name in UNITS), "nats.conf"])
def test_unit_sets_declared_settings_and_names_credentials_that_it_loads(name):
    keys = unit(name)
    environ = assignments(keys["Environment"])
    assert not set(environ) - settings_names()
    loaded = {line.split(":")[0] for line in keys.get("LoadCredential", [])}
    assert {
        value.removeprefix("%d/") for value in environ.values() if value.startswith("%d/")
    } == loaded


@pytest.mark.parametrize("name", ["edge", "worker"])
def test_example_of_an_environment_file_is_understood_and_has_no_secrets(name):
    (path,) = unit(f"eventbus-{name}.service")["EnvironmentFile"]
    assert path == f"/etc/eventbus/{name}.env"
    text = (SYSTEMD / f"{name}.env.example").read_text(encoding="utf-8")
    environ = assignments(text.splitlines())
    assert not set(environ) - settings_names()
    Settings.from_env(environ)
    EdgeSettings.from_env(environ)
    assert not re.search(r"^(JWT_SECRET|BROADCAST_API_KEY)=", text, re.MULTILINE)


@pytest.mark.parametrize("name", UNITS)
def test_systemd_understands_the_unit(name, tmp_path):
    text = (SYSTEMD / f"{name}.service").read_text(encoding="utf-8")
    (command,) = re.findall(r"^ExecStart=(\S+)", text, re.MULTILINE)
    assert command == "/opt/eventbus/bin/eventbus"
    if shutil.which("systemd-analyze") is None:
        return
    # The program need not be installed where tests run.
    path = tmp_path / f"{name}.service"
    path.write_text(text.replace(command, "/bin/true"), encoding="utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", path],
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_drop_in_and_component_for_disk_set_what_the_settings_know():
    text = (SYSTEMD / "always.conf").read_text(encoding="utf-8")
    environ = dict(re.findall(r"^Environment=(\w+)=(.*)$", text, re.MULTILINE))
    (component,) = documents(KUBERNETES / "always" / "kustomization.yaml")
    (patch,) = component["patches"]
    assert (patch["target"]["kind"], patch["target"]["name"]) in MANIFESTS
    operations = yaml.safe_load(patch["patch"])
    assert {each["op"] for each in operations} == {"add"}
    assert {each["path"].removeprefix("/data/"): each["value"] for each in operations} == environ
    assert not set(environ) - settings_names()
    settings = Settings.from_env(environ)
    assert (settings.durability, settings.queue_durability) == ("disk", "disk")


async def test_server_of_the_configuration_for_disk_has_the_tag_and_syncs_always(tmp_path):
    text = (SYSTEMD / "nats-always.conf").read_text(encoding="utf-8")
    (tmp_path / "nats-always.conf").write_text(
        text.replace("/var/lib/nats", str(tmp_path / "data"))
    )
    port = free_port()
    config = tmp_path / "nats.conf"
    config.write_text(f'listen: 127.0.0.1:{free_port()}\nhttp: 127.0.0.1:{port}\n'
                      'include "nats-always.conf"\n')  # fmt: skip
    server = await asyncio.create_subprocess_exec(
        find_binary(), "-c", config, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        varz = await asyncio.to_thread(_varz, port)
    finally:
        server.kill()
        await server.wait()
    assert varz["tags"] == [SYNC_TAG]
    assert varz["jetstream"]["config"]["sync_always"] is True


def _varz(port):
    url = f"http://127.0.0.1:{port}/varz"
    for _ in range(300):
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)
        time.sleep(0.1)
    raise AssertionError("the server did not start")


def test_values_of_the_chart_for_disk_say_what_the_configuration_of_systemd_says():
    (values,) = documents(KUBERNETES / "always" / "nats-values.yaml")
    assert values["config"]["merge"] == {"server_tags": [SYNC_TAG]}
    jetstream = values["config"]["jetstream"]
    assert (jetstream["enabled"], jetstream["merge"]) == (True, {"sync_interval": "always"})
