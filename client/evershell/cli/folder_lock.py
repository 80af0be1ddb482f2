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

    The lock is on the folder, because commands replace the file itself, and a separate lock file
    would belong to a single user.
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
