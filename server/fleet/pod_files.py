"""Folders and small files that tools can reach.

No link below the base is followed, and no pipe or device blocks the reader.
"""

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_MAX_BYTES = 200
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
# How often a link that is put in a folder's place again and again is removed.
_ATTEMPTS = 10


@contextmanager
def opened(base: Path, *names: str) -> Iterator[int]:
    """The descriptor of the folder `base/names…`. Raises OSError, also for a link among `names`."""
    folder = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in names:
            folder = _replaced(folder, os.open(name, _FOLDER, dir_fd=folder))
        yield folder
    finally:
        os.close(folder)


@contextmanager
def made(base: Path, *names: str) -> Iterator[int]:
    """As `opened`, but creates what is missing, and removes links and files in a folder's place.

    Raises OSError.
    """
    folder = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in names:
            folder = _replaced(folder, _make(folder, name))
        yield folder
    finally:
        os.close(folder)


def _replaced(folder: int, below: int) -> int:
    os.close(folder)
    return below


def _make(folder: int, name: str) -> int:
    for _ in range(_ATTEMPTS):
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=folder)
        try:
            return os.open(name, _FOLDER, dir_fd=folder)
        except NotADirectoryError:
            os.unlink(name, dir_fd=folder)
    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), name)


def names(folder: int) -> list[str]:
    """What the folder holds. Raises OSError."""
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]


def read(folder: int, name: str) -> str:
    """Returns what `write` wrote. Raises OSError and ValueError, also for what is no plain file."""
    with open_plain(folder, name, os.O_RDONLY) as file:
        return file.read(_MAX_BYTES).decode()


def write(folder: int, name: str, text: str) -> None:
    """Creates or replaces the file in one step; what is no plain file makes way. Raises OSError."""
    new = f".{name}.{os.getpid()}"
    remove(folder, new)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(new, flags, 0o600, dir_fd=folder), "w") as file:
            file.write(text)
        try:
            os.rename(new, name, src_dir_fd=folder, dst_dir_fd=folder)
        except IsADirectoryError:
            remove(folder, name)
            os.rename(new, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        with suppress(OSError):
            remove(folder, new)
        raise


def remove(folder: int, name: str) -> None:
    """Removes the file or link of this name, if there is one; moves a folder aside. Raises OSError."""
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        # A tool can have filled it with more than can be deleted while the controller waits.
        os.rename(name, f"{name}.{time.time_ns()}", src_dir_fd=folder, dst_dir_fd=folder)


def open_log(folder: int, name: str) -> BinaryIO:
    """Opens the file for appending; what is no plain file makes way. Raises OSError."""
    with suppress(FileNotFoundError):
        if not _is_plain(os.stat(name, dir_fd=folder, follow_symlinks=False)):
            remove(folder, name)
    return open_plain(folder, name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def open_plain(folder: int, name: str, flags: int) -> BinaryIO:
    """Opens a plain file. Raises OSError for everything else, and waits for no pipe."""
    descriptor = os.open(name, flags | os.O_NONBLOCK | os.O_NOFOLLOW, 0o600, dir_fd=folder)
    file = os.fdopen(descriptor, "rb" if flags == os.O_RDONLY else "ab")
    if not _is_plain(os.fstat(descriptor)):
        file.close()
        raise OSError(errno.EINVAL, "not a plain file", name)
    return file


def _is_plain(found: os.stat_result) -> bool:
    """A file with a second name is refused: a hard link leads to another file as a symbolic one does."""
    return stat.S_ISREG(found.st_mode) and found.st_nlink <= 1
