"""Finds the processes of a pod by an environment variable that they were started with."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

from evershell.pod import process
from evershell.pod.process import WORKSPACE_VARIABLE
from tests.support.alive import is_alive


def of_pod(workspace_id: str) -> list[psutil.Process]:
    """Returns the living processes of the workspace's pods, and their descendants."""
    found: dict[int, psutil.Process] = {}
    for candidate in psutil.process_iter():
        with suppress(psutil.Error):
            if candidate.environ().get(WORKSPACE_VARIABLE) == workspace_id:
                for each in (candidate, *candidate.children(recursive=True)):
                    found[each.pid] = each
    return [each for each in found.values() if is_alive(each)]


def kill(workspace_id: str) -> None:
    """Kills the processes of the workspace's pods, and their descendants."""
    for each in of_pod(workspace_id):
        with suppress(psutil.Error):
            each.kill()


@contextmanager
def subreaper() -> Iterator[None]:
    """Inside the block, this process is a subreaper, as a controller is."""
    process.become_subreaper()
    try:
        yield
    finally:
        ctypes.CDLL(None).prctl(process._PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
