"""Runs a command only as long as its own standard input stays open.

Started by `eventbus.server` as a plain script (`python -I -S server_guard.py …`): its parent holds
the other end of the pipe, which the system closes however the parent ends, kill -9 included. Then
the command is ended too. Its first line of output is the command's process id; its exit status is
the command's. This is one mechanism for every system; Linux's PR_SET_PDEATHSIG would fire when the
thread that started the server ends, which may be long before the process does.
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
"""How long the command may take to end when it is asked to, before it is killed."""


def main() -> int:
    """Run the command of `sys.argv` and give its exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--hold", type=int, help="a file descriptor that the command keeps open")
    parser.add_argument("--remove", help="a folder to remove at the parent's end")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    child = subprocess.Popen(  # noqa: S603 - our own parent says what to run
        options.command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        pass_fds=() if options.hold is None else (options.hold,),
    )
    # What ends the guard is its parent's end; a signal meant for the whole group must not part
    # it from the command. Set after the start, for the command would inherit it.
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    sys.stdout.write(f"{child.pid}\n")
    sys.stdout.flush()
    alone = threading.Event()
    threading.Thread(target=_end_with_parent, args=(child, alone), daemon=True).start()
    status = child.wait()
    if options.remove and alone.is_set():
        shutil.rmtree(options.remove, ignore_errors=True)
    return abs(status)


def _end_with_parent(child: "subprocess.Popen[bytes]", alone: threading.Event) -> None:
    while os.read(0, 1024):
        pass
    alone.set()
    child.terminate()
    time.sleep(GRACE_S)  # the process ends with the main thread, before this does
    child.kill()


if __name__ == "__main__":
    sys.exit(main())
