"""What docs/operating.md says of metrics, alerts, settings and traces is so."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.metrics import MetricWrapperBase

from eventbus.config import Settings
from eventbus.environment import variables
from eventbus_edge.config import EdgeSettings
from eventbus_edge.metrics.metrics import Metrics
from eventbus_edge.metrics.readers import ReadMetric

PAGE = (Path(__file__).parent.parent.parent / "docs" / "operating.md").read_text(encoding="utf-8")
ALERTS = re.findall(r"expr: (.*)", PAGE)
_NAME = re.compile(r"eventbus_edge_[a-z_]+")
_SELECTOR = re.compile(r"(eventbus_edge_[a-z_]+)(?:\{([^}]*)\})?(\[\w+\])?")


def metrics():
    """Each sample's name, with the metric's type and labels."""
    found = {}
    for metric in vars(Metrics()).values():
        if isinstance(metric, MetricWrapperBase | ReadMetric):
            [family] = metric.describe()
            labels = set(getattr(metric, "_labelnames", ()))
            suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
            for suffix in suffixes.get(family.type, [""]):
                found[family.name + suffix] = family.type, labels
    return found


def reported(sample):
    """The name of a sample's metric as tables have it."""
    return re.sub(r"_(bucket|sum|count)$", "", sample)


def test_every_metric_is_explained_and_none_that_does_not_exist():
    table = PAGE.partition("## Metrics")[2].partition("### Alerts")[0]
    assert set(_NAME.findall(table)) == {reported(sample) for sample in metrics()}


def test_every_metric_that_the_page_names_anywhere_exists():
    known = metrics()
    named = set(_NAME.findall(PAGE))
    assert named <= known.keys() | {reported(sample) for sample in known}


@pytest.mark.parametrize("expression", ALERTS)
def test_alert_asks_for_samples_that_exist_in_a_way_that_fits_their_type(expression):
    selectors = list(_SELECTOR.finditer(expression))
    assert selectors
    for selector in selectors:
        name, matchers, window = selector.groups()
        kind, labels = metrics()[name]
        assert bool(window) == (kind != "gauge"), "counters want a rate, gauges none"
        if window:
            before = expression[: selector.start()]
            assert before.endswith(("rate(", "increase(")), name
        for matcher in (matchers or "").split(",") if matchers else ():
            assert re.split(r"[=!~]+", matcher)[0] in labels
    assert expression.count("(") == expression.count(")")
    if "_bucket" in expression:
        assert re.match(r"histogram_quantile\(0\.\d+, sum by \((\w+, )?le\) \(rate\(", expression)


def test_alerts_are_there():
    assert len(ALERTS) >= 8
    assert len(set(re.findall(r"alert: (\w+)", PAGE))) == len(ALERTS)


def test_every_setting_that_the_page_names_exists():
    known = {v.name for struct in (Settings, EdgeSettings) for v in variables(struct)}
    named = set(re.findall(r"\b((?:BROADCAST|EDGE|JWT|NATS|CORS)_[A-Z_]+)\b", PAGE))
    assert len(named) > 15
    assert named <= known


def test_example_of_a_provider_lets_spans_out(tmp_path):
    [example] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    program = tmp_path / "traced.py"
    program.write_text(
        example
        + """
import asyncio
from eventbus.bus import EventBus
from eventbus.config import Settings

async def main():
    async with EventBus(Settings(driver="memory")) as bus:
        await bus.publish("general", "news", {})

asyncio.run(main())
provider.shutdown()
"""
    )
    done = subprocess.run([sys.executable, program], capture_output=True, check=True, text=True)
    assert '"name": "publish"' in done.stdout
    assert '"messaging.destination.name": "general"' in done.stdout
