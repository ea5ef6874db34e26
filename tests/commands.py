"""Runs the command `eventbus` in processes that do not have to import it first.

Importing takes several times as long as most commands do. So each command is a fork of one server
process (`multiprocessing`, start method `forkserver`) that has imported everything. Apart from
that, it is a process like any other: with its own environment, folder, streams and exit code.
"""

import multiprocessing
import os
import pkgutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import eventbus.cli

COMMAND = [sys.executable, "-c", "from eventbus.cli.app import main; main()"]
STREAMS = ("stdin", "stdout", "stderr")
_IMPORTED = [
    "tests.commands",
    "pytest",  # the main module of a run without workers, which multiprocessing imports
    *(module.name for module in pkgutil.walk_packages(eventbus.cli.__path__, "eventbus.cli.")),
    "typer.rich_utils", "rich.table", "uvloop", "aiohttp",
    "eventbus.bus", "eventbus.drivers.nats", "eventbus.drivers.redis", "eventbus_edge.app",
]  # fmt: skip


def run_command(
    *arguments: str,
    env: Mapping[str, str],
    cwd: Path,
    input: str = "",  # noqa: A002 - as in subprocess.run()
    encoding: str = "utf-8",
    timeout: float = 150,
) -> subprocess.CompletedProcess[str]:
    """Run `eventbus` to its end."""
    if _is_for_interpreter(env):
        return subprocess.run(
            [*COMMAND, *arguments], env=env, cwd=cwd, input=input, encoding=encoding,
            check=False, capture_output=True, timeout=timeout,
        )  # fmt: skip
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    with tempfile.TemporaryDirectory() as folder:
        stdin, stdout, stderr = (Path(folder, name) for name in STREAMS)
        stdin.write_text(input, encoding="utf-8")
        process = context.Process(target=_main, args=(arguments, dict(env), cwd, folder))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(arguments, timeout, stdout.read_bytes())
        code = process.exitcode
        process.close()
        return subprocess.CompletedProcess(
            arguments, code, stdout.read_text(encoding), stderr.read_text(encoding)
        )


def _is_for_interpreter(env: Mapping[str, str]) -> bool:
    """Whether Python reads variables of `env` when it starts, apart from those that we have too."""
    return any(
        name.startswith("PYTHON") and name != "PYTHONPATH" and value != os.environ.get(name)
        for name, value in env.items()
    )


def _main(arguments: tuple[str, ...], env: dict[str, str], cwd: Path, folder: str) -> None:
    """Become that command; this runs in the new process."""
    for number, name in enumerate(STREAMS):
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
        opened = os.open(os.path.join(folder, name), flags)  # noqa: PTH118 - a low-level open
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - ours reads nothing
    inherited = {"", *os.environ.get("PYTHONPATH", "").split(os.pathsep)}
    paths = [path for path in sys.path if path not in inherited]
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path[:] = ["", *filter(None, env.get("PYTHONPATH", "").split(os.pathsep)), *paths]
    sys.argv[:] = ["-c", *arguments]

    from eventbus.cli.app import main  # noqa: PLC0415 - only here

    main()
