"""Tells whether a process has ended."""

import psutil


def is_alive(process: psutil.Process | int) -> bool:
    """Whether the process, or the one with this id, has not ended. A zombie has ended.

    The process may end between any two questions about it, so a missing one has ended as well.
    """
    try:
        known = psutil.Process(process) if isinstance(process, int) else process
        return bool(known.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
