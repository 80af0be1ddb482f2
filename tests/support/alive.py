"""Tells whether a process has ended."""

import psutil


def is_alive(process: psutil.Process | int) -> bool:
    """Whether the process is still running. A zombie has ended.

    The process may end at any moment. A process that is not found has ended, too.
    """
    try:
        known = psutil.Process(process) if isinstance(process, int) else process
        return bool(known.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
