"""Runs a command until its own standard input is closed.

`eventbus.server` starts it as a plain script (`python -I -S guard.py …`). The parent holds the
other end of the pipe. The system closes it whenever the parent ends, even by kill -9, and the guard
then ends the command. Its first line of output is the command's process id, and its exit status is
that of the command.

This works on every system. Linux's PR_SET_PDEATHSIG would not do: it fires when the thread that
started the server ends, which can be long before the process does.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

GRACE_S = 5.0
"""How long the command can take to end before it is killed."""


def main() -> int:
    """Run the command in `sys.argv`, and return its exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--hold", type=int, help="a file descriptor that the command keeps open")
    parser.add_argument("--remove", help="a folder to remove when the parent ends")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    child = subprocess.Popen(  # noqa: S603 - the command comes from our own parent
        options.command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        pass_fds=() if options.hold is None else (options.hold,),
    )
    # Only the parent's end ends the guard: a signal to the whole group must not end it before the
    # command. Set after the start, since the command would inherit it.
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    sys.stdout.write(f"{child.pid}\n")
    sys.stdout.flush()
    orphaned = threading.Event()
    threading.Thread(target=_end_with_parent, args=(child, orphaned), daemon=True).start()
    status = child.wait()
    if options.remove and orphaned.is_set():
        shutil.rmtree(options.remove, ignore_errors=True)
    return abs(status)


def _end_with_parent(child: "subprocess.Popen[bytes]", orphaned: threading.Event) -> None:
    while os.read(0, 1024):
        pass
    orphaned.set()
    child.terminate()
    time.sleep(GRACE_S)  # a daemon thread: if the command ends in time, so does this process
    child.kill()


if __name__ == "__main__":
    sys.exit(main())
