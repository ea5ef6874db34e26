"""The watch over the run's logs (tests/conftest.py) catches what it is there for."""

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

CONFTEST = (Path(__file__).parent / "conftest.py").read_text(encoding="utf-8")
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI3In0.c2lnbmF0dXJlLW9mLWEtdG9rZW4"
HEAD = f"""
import asyncio, logging, subprocess, sys
log = logging.getLogger("eventbus_edge.somewhere")
JWT = {JWT!r}
WRITER = "import sys; sys.stderr.write({JWT!r})"
"""


@pytest.fixture
def run(pytester):
    def run_tests(body, *options):
        pytester.makeconftest(CONFTEST)
        pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
        pytester.makepyfile(test_leaking=HEAD + body)
        return pytester.runpytest_subprocess(*options)

    return run_tests


@pytest.mark.parametrize(
    "leak",
    [
        'log.warning("GET /ws?auth_token=%s", JWT)',
        'log.debug("claims of %s", JWT)',
        'logging.getLogger("others").error("refused", exc_info=ValueError(JWT))',
        'log.warning("connecting to nats://user:hunter2@127.0.0.1")',
        'log.warning("with a-secret-of-tests-that-is-32-bytes-long")',
        'log.warning("seed SU" + "A" * 56)',
        'subprocess.run([sys.executable, "-c", WRITER], capture_output=True)',
    ],
)
def test_secret_in_a_log_fails_the_test_by_name(run, leak):
    result = run(f"def test_one(): {leak}\ndef test_other(): log.warning('all is well')\n")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*test_leaking.py::test_one has logged secrets:*"])
    assert JWT not in result.stdout.str().partition("has logged secrets:")[2].partition("----")[0]


def test_stderr_of_a_process_of_asyncio_is_checked(run):
    result = run("""
async def child():
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WRITER, stderr=subprocess.PIPE
    )
    await process.communicate()

def test_one():
    asyncio.run(child())
""")
    result.assert_outcomes(failed=1)


@pytest.mark.timeout(180)
def test_workers_of_xdist_report_it_too(run):
    result = run("def test_one(): log.warning(JWT)\n", "-n", "2")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*test_one has logged secrets:*"])


def test_masked_secrets_and_other_text_pass(run):
    result = run("""
def test_one():
    log.warning("refused <token>, at nats://user:***@127.0.0.1:4222, see http://[::1]:80/a@b")
""")
    result.assert_outcomes(passed=1)
