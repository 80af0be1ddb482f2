"""Files that hold a secret."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_private(path: Path, text: str) -> None:
    """Creates or replaces the file atomically. Only its owner can ever read it. Raises OSError.

    A file keeps its owner if root replaces it, so that its programs can read it.
    """
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        if os.geteuid() == 0 and path.exists() and (kept := path.stat()).st_uid != 0:
            os.fchown(file.fileno(), kept.st_uid, kept.st_gid)
        file.write(text)
    unfinished.replace(path)


@contextmanager
def exclusive_change(path: Path) -> Iterator[None]:
    """Waits until no other process is in such a block for the same folder. Raises OSError."""
    # `write_private` replaces the file itself, and a file for the lock would belong to one user.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        # Releases the lock.
        os.close(folder)
