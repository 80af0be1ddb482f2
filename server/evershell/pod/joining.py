"""Enters the sandbox of a pod from outside: setns(2), user_namespaces(7), pid_namespaces(7).

bubblewrap creates two user namespaces: the outer one owns the other namespaces, and the agent runs
in the inner one, without capabilities.
"""

import ctypes
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

# The namespaces, in addition to user and PID, in which a sandbox may differ from the machine.
_NAMESPACES = ("cgroup", "ipc", "net", "uts", "mnt")
# The request of ioctl_ns(2) for the user namespace that owns another namespace.
_NS_GET_USERNS = 0xB701
_CLONE_NEWPID = 0x20000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_PR_SET_DUMPABLE, _PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 4, 23, 24, 38
# The header for capset(2): the version of its structs, and 0, which stands for this process.
_CAPABILITIES_HEADER = (ctypes.c_uint32 * 2)(0x20080522, 0)

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A sandbox whose namespaces this process has entered.

    It has not entered the inner user namespace and the PID namespace.
    """

    # Descriptors of the two user namespaces.
    outer: int
    inner: int


def enter(pid: int, uid: int | None) -> Sandbox:
    """Enters the sandbox of the process `pid`, with a new PID namespace instead of the sandbox's.

    The next child of this process is the init process of the new PID namespace. This child must
    call `become_init`. This process must have only one thread. If it is root, it becomes `uid`, the
    user of the sandbox. Raises OSError.
    """
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    theirs, own = (Path("/proc", str(each), "ns") for each in (pid, os.getpid()))
    # Opened before this process enters the mount namespace, which has another /proc.
    others = [
        os.open(theirs / name, os.O_RDONLY)
        for name in _NAMESPACES
        if (theirs / name).readlink() != (own / name).readlink()
    ]
    inner = os.open(theirs / "user", os.O_RDONLY)
    outer = fcntl.ioctl(others[-1], _NS_GET_USERNS)
    for namespace in (outer, *others):
        _check(_libc.setns(namespace, 0), "setns")
    _check(_libc.unshare(_CLONE_NEWPID), "unshare")
    return Sandbox(outer, inner)


def become_init(sandbox: Sandbox) -> None:
    """Completes the entry in the init process of the PID namespace, and drops all privileges.

    The process then has the same rights as a program that bubblewrap starts. Raises OSError.
    """
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    _check(_libc.mount(b"proc", b"/proc", b"proc", flags, None), "mount")
    if not os.path.sameopenfile(sandbox.outer, sandbox.inner):
        _check(_libc.setns(sandbox.inner, 0), "setns")
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    capability = 0
    while _libc.prctl(_PR_CAPBSET_READ, capability, 0, 0, 0) >= 0:
        _check(_libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0), "prctl")
        capability += 1
    _check(_libc.capset(_CAPABILITIES_HEADER, (ctypes.c_uint32 * 6)()), "capset")
    # After a change of its user, the process cannot read its own /proc/self without this.
    _check(_libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl")


def _check(result: int, call: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
