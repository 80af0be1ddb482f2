"""Keeps two commands from changing the same file at the same time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Holds an exclusive lock on the folder during the block.

    Raises OSError if the folder cannot be opened.

    The lock is on the folder. A lock on the file itself would be lost when a command replaces the
    file, and a separate lock file would belong to the user who has created it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Continues without a lock on a file system that cannot lock a folder, such as NFS, which
        # locks only files that are open for writing (flock(2)).
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        # Releases the lock.
        os.close(descriptor)
