"""Run a program while standard input is open: it ends when its parent ends, even if killed.

A program of its own, which imports nothing of lmsmith: ``python process_watch.py COMMAND …``.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading

GRACE_SECONDS = 10.0


def main() -> int:
    """Start the command in a process group of its own; returns its exit code."""
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)

    def end_with_parent() -> None:
        while os.read(0, 1024):
            pass
        child.terminate()
        try:
            child.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            _kill_group(child.pid)

    # A signal to the terminal's group, such as Ctrl-C, is for the parent, which closes the pipe.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    code = child.wait()
    _kill_group(child.pid)  # workers that outlived it
    return code


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
