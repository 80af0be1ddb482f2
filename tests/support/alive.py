"""Tells whether a process has ended."""

import psutil


def is_alive(process: psutil.Process | int) -> bool:
    """Whether the process is still running. A zombie has ended.

    A process may end between two questions about it, so a process that is not found has ended too.
    """
    try:
        known = psutil.Process(process) if isinstance(process, int) else process
        return bool(known.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
