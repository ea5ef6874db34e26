"""Coverage-guided fuzzing of the decoders with atheris; see scripts/fuzz.

Each target runs in a child process, forked from one process that has imported everything with
instrumentation. New inputs that reach new code are kept in the corpus. Exits with 1 if an input
makes its target raise an undocumented exception; the input is kept in --out.
"""

import argparse
import contextlib
import io
import logging
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

MOST_BYTES: Final = 4096
MOST_SHOWN: Final = 4000
PATIENCE_S: Final = 40
"""An input that takes longer than this is also a fault."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/fuzz",
        description="Fuzz the decoders, guided by coverage. Exits with 1 if an input makes a "
        "decoder raise an undocumented exception. Defaults are in brackets.",
    )
    add = parser.add_argument
    add("targets", nargs="*", metavar="TARGET", help="the decoders; see --list [all]")
    add("--seconds", type=int, default=0, help="seconds per target [no limit]")
    add("--runs", type=int, default=0, help="number of inputs per target [no limit]")
    add("--seed", type=int, default=0, help="seed of the random numbers [random]")
    add("--keep", action="store_true", help="add inputs that reach new code to tests/fuzz/corpus")
    add("--out", type=Path, default=Path("build/fuzz"), help="folder for findings [build/fuzz]")
    add("--list", action="store_true", help="list the targets, and exit")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Fuzz; returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        import atheris  # noqa: PLC0415 - optional, and first, to instrument later imports
    except ImportError:
        parser.error("atheris is not installed: there are wheels for Linux and Python 3.11 to 3.14")
    with (
        contextlib.redirect_stderr(io.StringIO()),  # it names each module
        atheris.instrument_imports(include=["eventbus", "eventbus_edge"]),
    ):
        from tests.fuzz.targets import TARGETS  # noqa: PLC0415
    if options.list:
        _say("\n".join(TARGETS))
        return 0
    if unknown := set(options.targets) - TARGETS.keys():
        parser.error(f"no such target: {', '.join(sorted(unknown))}; see --list")
    logging.disable(logging.WARNING)
    failed = [name for name in options.targets or TARGETS if not _fuzz_in_child(name, options)]
    if failed:
        _say(f"faults in {', '.join(failed)}: see above, and {options.out}/")
    return bool(failed)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _fuzz_in_child(name: str, options: argparse.Namespace) -> bool:
    """Fuzz a target in a child, since libFuzzer ends its process. Returns whether it passed."""
    from tests.fuzz.targets import CORPUS, TARGETS, kept, name_of  # noqa: PLC0415

    each = TARGETS[name]
    options.out.mkdir(parents=True, exist_ok=True)
    folder = tempfile.mkdtemp()  # a TemporaryDirectory would be removed by the child, too
    try:
        for data in (*each.seeds, *kept(each)):
            (Path(folder) / name_of(data)).write_bytes(data)
        log = options.out / f"{name}.log"
        child = os.fork()
        if child == 0:
            _run_child(name, folder, log, options)
        _, status = os.waitpid(child, 0)
        count = len(list(Path(folder).iterdir()))
        _say(f"{name}: {count} inputs, {'nothing found' if status == 0 else 'A FAULT'}")
        if status:
            _say(log.read_text(encoding="utf-8", errors="replace")[-MOST_SHOWN:])
        if options.keep and status == 0:
            _keep(Path(folder), CORPUS / name, each.seeds)
    finally:
        shutil.rmtree(folder)
    return status == 0


def _run_child(name: str, folder: str, log: Path, options: argparse.Namespace) -> NoReturn:
    """Fuzz, and write libFuzzer's output to a file. It runs none of the parent's clean-up."""
    code = 1
    try:
        with log.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        _fuzz(name, folder, options)
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else 1
    except BaseException:  # noqa: BLE001 - it is reported, and ends only this process
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _fuzz(name: str, folder: str, options: argparse.Namespace) -> None:
    import atheris  # noqa: PLC0415

    from tests.fuzz.targets import TARGETS  # noqa: PLC0415

    arguments = [
        sys.argv[0],
        folder,
        f"-max_len={MOST_BYTES}",
        f"-timeout={PATIENCE_S}",
        f"-artifact_prefix={options.out}/{name}-",
        f"-seed={options.seed}",
        "-rss_limit_mb=1024",
        "-print_final_stats=0",
        "-verbosity=0",
    ]
    if options.seconds:
        arguments.append(f"-max_total_time={options.seconds}")
    if options.runs:
        arguments.append(f"-runs={options.runs}")
    atheris.Setup(arguments, TARGETS[name].run)
    atheris.Fuzz()


def _keep(found: Path, corpus: Path, seeds: Sequence[bytes]) -> None:
    """Copy inputs other than seeds, the smallest first, while there is room."""
    from tests.fuzz.targets import MOST_FILES, MOST_KEPT_BYTES, name_of  # noqa: PLC0415

    corpus.mkdir(parents=True, exist_ok=True)
    known = {name_of(seed) for seed in seeds} | {path.name for path in corpus.iterdir()}
    room = MOST_FILES - len(list(corpus.iterdir()))
    for data in sorted((path.read_bytes() for path in found.iterdir()), key=len):
        if room > 0 and len(data) <= MOST_KEPT_BYTES and name_of(data) not in known:
            (corpus / name_of(data)).write_bytes(data)
            room -= 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
