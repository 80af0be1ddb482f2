"""The processes of a pod: the variables that identify them, and system calls that control them."""

import asyncio
import ctypes
import os

# Variables in the environment of an agent, its tools and their children, unless a process clears
# its environment.
WORKSPACE_VARIABLE = "EVERSHELL_WORKSPACE_ID"
EPOCH_VARIABLE = "EVERSHELL_EPOCH"

# The options of waitid(2) to find any child that has ended, even if it does not send SIGCHLD
# (__WALL), without reaping it.
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
    """Whether a child of this process has ended and is not reaped."""
    try:
        return os.waitid(os.P_ALL, 0, ANY_CHILD) is not None
    except ChildProcessError:
        return False


async def wait_exit(pid: int) -> None:
    """Waits until the process has ended. It need not be a child of this process.

    Returns at once if the process does not exist. Does not reap it. Raises OSError.
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
