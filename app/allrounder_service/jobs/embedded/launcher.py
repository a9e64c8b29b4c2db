"""Becomes the server program, bound to die with the thread that started it.

Run by its path in a fresh interpreter (`python -I -S launcher.py PARENT_PID PROGRAM ARGUMENTS...`),
because a `preexec_fn` may deadlock in a process with threads. Imports nothing of this package.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_EXIT_TOO_LATE = 75


def main(parent_pid: int, command: list[str]) -> None:
    """Never returns: replaces the process, or exits if the parent has ended already."""
    if sys.platform == "linux":
        # SIGKILL: a stopped or busy server would sit out SIGTERM, and what it acknowledged is on
        # disk. The kernel forgets the request at exec only for programs that gain privileges.
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl")
    # A parent that ended before the line above has sent no signal and never will.
    if os.getppid() != parent_pid:
        os._exit(_EXIT_TOO_LATE)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
