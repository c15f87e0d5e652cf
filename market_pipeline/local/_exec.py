"""Become a server: run as a small program between the supervisor and the server that it starts.

    python -I -S _exec.py '{"parent": 4711, "signal": 15, "user": null, "pass_parents": false}' program arguments...

It does in a fresh process what is unsafe in `preexec_fn` of a process with threads: drop root's rights, ask the
kernel to signal the server when the supervisor dies, then replace itself by the server. Standard library only,
so that it costs some 15 ms.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys

PR_SET_PDEATHSIG, PR_SET_KEEPCAPS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 1, 8, 47, 2
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2
CAPABILITY_VERSION_3 = 0x20080522


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def main() -> None:
    """Apply the options of the first argument, then exec the rest."""
    options = json.loads(sys.argv[1])
    libc = ctypes.CDLL(None, use_errno=True)
    on_linux = sys.platform.startswith("linux")
    if options["user"] is not None:
        _become(libc, *options["user"], keep_passage=options["pass_parents"] and on_linux)
    if on_linux and options["parent"]:
        # After the change of user, which clears it.
        libc.prctl(PR_SET_PDEATHSIG, options["signal"], 0, 0, 0)
        if os.getppid() != options["parent"]:
            sys.exit("the supervisor died before the server began")
    # Python ignores SIGPIPE, and a shell's background job SIGINT: an ignored signal would stay ignored in the server.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 - becoming another program is the point


def _become(libc: ctypes.CDLL, uid: int, gid: int, *, keep_passage: bool) -> None:
    """Change to an ordinary user; with `keep_passage` keep the one right to pass through closed folders."""
    if keep_passage:
        _check(libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0))
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    if keep_passage:
        _keep_passage(libc)


def _keep_passage(libc: ctypes.CDLL) -> None:
    header = _Header(CAPABILITY_VERSION_3, 0)
    data = (_Data * 2)()
    _check(libc.capget(ctypes.byref(header), data))
    # Reading and searching is enough; containers often grant only the wider right.
    for capability in (CAP_DAC_READ_SEARCH, CAP_DAC_OVERRIDE):
        if data[0].permitted & (1 << capability):
            break
    else:
        sys.exit("this container has neither CAP_DAC_READ_SEARCH nor CAP_DAC_OVERRIDE")
    for word in data:
        word.effective = word.permitted = word.inheritable = 0
    data[0].effective = data[0].permitted = data[0].inheritable = 1 << capability
    _check(libc.capset(ctypes.byref(header), data))
    _check(libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0))


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


if __name__ == "__main__":
    main()
