"""Ends child processes together with everything that they have started."""

import os
import signal
import subprocess


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill (-9) a process that was started with `start_new_session=True`, and its descendants.

    Killed alone, nginx leaves its workers behind, and `unshare` the process in its namespaces.
    """
    if process.poll() is None:  # until it is reaped, no other process gets its number
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
