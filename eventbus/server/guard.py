"""Runs a command until its parent ends, or wants it to end.

`eventbus.server` starts it as a plain script (`python -I -S guard.py …`), and holds the other end
of the pipe that is its standard input. A byte in that pipe, or its end, ends the command. So does
the end of the parent, even by kill -9: the pipe alone would not show it, because processes that the
parent has forked hold it too. The guard's first line of output is the command's process id, and its
exit status is that of the command.

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
_LOOK_S = 0.25
"""How often to check whether the parent lives, where only that can show its end."""


def main() -> int:
    """Run the command in `sys.argv`, and return its exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--parent", type=int, required=True, help="the process id of the parent")
    parser.add_argument("--hold", type=int, help="a file descriptor that the command keeps open")
    parser.add_argument("--remove", help="a folder to remove after the command has ended")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    child = subprocess.Popen(  # noqa: S603 - the command comes from our own parent
        options.command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        pass_fds=() if options.hold is None else (options.hold,),
    )
    # Only the parent ends the guard: a signal to the whole group must not end it before the
    # command. Set after the start, since the command would inherit it.
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    sys.stdout.write(f"{child.pid}\n")
    sys.stdout.flush()
    ending = threading.Event()
    threading.Thread(target=_read_pipe, args=(ending,), daemon=True).start()
    threading.Thread(target=_end, args=(child, ending, options.parent), daemon=True).start()
    status = child.wait()
    if options.remove and ending.is_set():
        shutil.rmtree(options.remove, ignore_errors=True)
    return abs(status)


def _read_pipe(ending: threading.Event) -> None:
    os.read(0, 1)
    ending.set()


def _end(child: "subprocess.Popen[bytes]", ending: threading.Event, parent: int) -> None:
    while not ending.wait(_LOOK_S):
        if os.getppid() != parent:  # on Windows it stays, but nothing is forked there
            ending.set()
    child.terminate()
    time.sleep(GRACE_S)  # a daemon thread: if the command ends in time, so does this process
    child.kill()


if __name__ == "__main__":
    sys.exit(main())
