"""The processes of a pod: how their environment names it, and how orphans are kept."""

import asyncio
import ctypes
import os

# Variables in the environment of an agent, its tools and their children, unless a process clears
# its environment.
WORKSPACE_VARIABLE = "EVERSHELL_WORKSPACE_ID"
EPOCH_VARIABLE = "EVERSHELL_EPOCH"

# For waitid(2): any child, even one that does not end with SIGCHLD (__WALL), without reaping it.
ANY_CHILD = os.WEXITED | os.WNOHANG | os.WNOWAIT | 0x40000000

_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_DUMPABLE = 4


def become_subreaper() -> None:
    """Makes orphaned descendants children of this process, so that it can find and end them.

    See PR_SET_CHILD_SUBREAPER in prctl(2). A descendant cannot escape by a new session, a cleared
    environment or a double fork.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def become_unreadable() -> None:
    """Hides the memory and the environment of this process from other processes of the same user.

    See PR_SET_DUMPABLE in prctl(2). Does not apply to programs that this process starts.
    """
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def has_ended_child() -> bool:
    """Whether a child of this process has ended and is not reaped. It takes a microsecond."""
    try:
        return os.waitid(os.P_ALL, 0, ANY_CHILD) is not None
    except ChildProcessError:
        return False


async def wait_exit(pid: int) -> None:
    """Waits until a process has ended, even if it is not a child. Returns at once if there is none.

    Raises OSError. The caller reaps the process if it is its child.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    has_ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, has_ended.set)
    try:
        await has_ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
