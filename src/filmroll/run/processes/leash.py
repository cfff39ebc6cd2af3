"""Becomes another program, which is told to end when whoever started it dies: `python leash.py STARTER COMMAND...`.

filmroll's own processes read their standard input for that. Others do not, and here the kernel tells
them, where it is Linux. Started as a file and without filmroll, so that it takes no time.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(starter: int, command: list[str]) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != starter:
            # It has died already, and nobody would tell.
            sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
