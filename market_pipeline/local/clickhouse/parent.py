"""End with the process that started this one."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from market_pipeline.errors import LocalStackError

_PR_SET_PDEATHSIG = 1  # prctl(2)


def die_with_parent(parent: int) -> None:
    """Send this process SIGTERM when its parent is gone; `parent` is the pid that started it.

    Linux only; LocalStackError elsewhere. The kernel's signal comes when the THREAD ends that started this process,
    so its handler first looks whether the parent is really gone. Call it in the main thread.
    """
    if not sys.platform.startswith("linux"):
        raise LocalStackError("--die-with-parent needs Linux")

    def look(*_: object) -> None:
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGUSR1, look)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGUSR1), 0, 0, 0):
        raise LocalStackError(f"prctl failed: {os.strerror(ctypes.get_errno())}")
    look()  # the parent may have ended before the kernel was told
