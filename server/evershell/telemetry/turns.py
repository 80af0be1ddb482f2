"""Counts the turns of a program's event loop in memory that its supervisor reads.

While the count grows, the program is not frozen, however slow the machine is. The supervisor passes
the memory as an open file, and the number of its descriptor in an environment variable. Without
this variable, a program counts nothing.
"""

import asyncio
import mmap
import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

# The environment variable with the number of the file descriptor.
VARIABLE = "EVERSHELL_TURNS_FD"
# An idle loop makes one turn in this time.
TURN_SECONDS = 0.5
_NAME = "evershell-turns"
_COUNT = struct.Struct("=Q")


class TurnCount:
    """The number of turns of one process, which begins at 0."""

    def __init__(self) -> None:
        """Raises OSError."""
        # Anonymous memory, which is freed when the program and its supervisor have ended.
        self.descriptor = os.memfd_create(_NAME)
        os.ftruncate(self.descriptor, _COUNT.size)
        self._memory = mmap.mmap(self.descriptor, _COUNT.size)

    def close_descriptor(self) -> None:
        """Closes the file. The count can still be read."""
        os.close(self.descriptor)

    def read(self) -> int:
        """How many turns the process has counted."""
        count: int = _COUNT.unpack_from(self._memory)[0]
        return count


@asynccontextmanager
async def counted() -> AsyncIterator[None]:
    """Counts the turns of the event loop while the block runs, if a supervisor asks for it."""
    # Children of this process inherit neither the variable nor the file.
    descriptor = os.environ.pop(VARIABLE, "")
    if not _is_turns(descriptor):
        yield
        return
    memory = mmap.mmap(int(descriptor), _COUNT.size)
    os.close(int(descriptor))
    counting = asyncio.create_task(_count(memory))
    try:
        yield
    finally:
        counting.cancel()


def _is_turns(descriptor: str) -> bool:
    """Whether this is the file of a turn count. A copied environment may name another file."""
    with suppress(OSError):
        return str(Path(f"/proc/self/fd/{descriptor}").readlink()).startswith(f"/memfd:{_NAME}")
    return False


async def _count(memory: mmap.mmap) -> None:
    turns = 0
    while True:
        turns += 1
        _COUNT.pack_into(memory, 0, turns)
        await asyncio.sleep(TURN_SECONDS)
