"""The memory of the tools in the sandbox of this agent."""

import os
from collections.abc import Iterable


def exceeds(limit_bytes: int) -> bool:
    """Whether all other processes that this one can see use more memory together.

    Memory of files does not count: the folders in which processes share it have a size
    (pod/tool_filter.py).
    """
    own = str(os.getpid())
    with os.scandir("/proc") as entries:
        pids = [each.name for each in entries if each.name.isdigit() and each.name != own]
    # Counts the pages that processes share after a fork once for each of them.
    if sum(_bytes(f"/proc/{pid}/status", (b"RssAnon:", b"VmSwap:")) for pid in pids) <= limit_bytes:
        return False
    # Counts each page once. It takes milliseconds for each gigabyte.
    exact = (_bytes(f"/proc/{pid}/smaps_rollup", (b"Pss_Anon:", b"SwapPss:")) for pid in pids)
    return sum(exact) > limit_bytes


def _bytes(path: str, names: Iterable[bytes]) -> int:
    """The sum of these fields, 0 if the process has ended."""
    try:
        # Without pathlib, which takes three times as long.
        with open(path, "rb", 0) as file:  # noqa: PTH123
            lines = file.readall().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(tuple(names)))
