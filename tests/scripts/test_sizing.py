"""The benchmark for sizing, as far as it goes without looking at its figures."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.benchmark.sizing.__main__ import MEASUREMENTS, parser
from scripts.benchmark.sizing.table import Table, figure

ROOT = Path(__file__).parents[2]
TINY = ("--clients", "3", "--messages", "1", "--seconds", "0.01", "--processes", "2")


def run(*options):
    return subprocess.run(
        [sys.executable, "-m", "scripts.benchmark.sizing", *options],
        cwd=ROOT, capture_output=True, text=True, timeout=170, check=False,
    )  # fmt: skip


@pytest.mark.timeout(180)
def test_it_measures_deliveries_and_a_node_that_ends():
    done = run(*TINY, "--only", "deliveries", "--only", "drain", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert (found["clients"], found["driver"]) == (3, "nats")
    assert [row["message"] for row in found["tables"]["deliveries"]] == [
        "0.2 KB to 1", "0.2 KB to 3", "2 KB to 1", "2 KB to 3",
    ]  # fmt: skip
    ((came_back, *_),) = (row.values() for row in found["tables"]["drain"])
    assert came_back == "3"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--clients", "0"), "'0' is not a number from 1 to 1000000"),
        (("--messages", "-1"), "'-1' is not a number"),
        (("--seconds", "nan"), "'nan' is not a time"),
        (("--only", "everything"), "invalid choice: 'everything'"),
        (("--driver", "log"), "invalid choice: 'log'"),
    ],
)
def test_invalid_option_is_refused(options, complaint, capsys):
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(options)
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


def test_page_on_deployment_has_figures_of_each_measurement():
    page = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    assert "python -m scripts.benchmark.sizing" in page
    (named,) = re.findall(r"`--only` takes ([^.]*)\.", page)
    assert re.findall(r"`(\w+)`", named) == list(MEASUREMENTS)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.0421, "0.042"), (0.5, "0.5"), (1.74, "1.7"), (23.4, "23"), (1234.5, "1,234")],
)
def test_figure_has_the_digits_that_count(value, text):
    assert figure(value) == text


def test_table_is_markdown():
    table = Table("Sizes", ("what", "KiB"), [("a", "1"), ("b", "2")])
    assert table.markdown() == "### Sizes\n\n| what | KiB |\n|---|---:|\n| a | 1 |\n| b | 2 |\n"
    assert table.records() == [{"what": "a", "KiB": "1"}, {"what": "b", "KiB": "2"}]
