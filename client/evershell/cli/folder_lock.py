"""Keeps two commands from changing the same file at once."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Waits until no other process is in such a block for the same folder. Raises OSError.

    The folder is locked, because the file itself is replaced, and a file for the lock would belong
    to one user.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Some file systems cannot lock a folder: NFS needs one that is open for writing (flock(2)).
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        # Releases the lock.
        os.close(descriptor)
