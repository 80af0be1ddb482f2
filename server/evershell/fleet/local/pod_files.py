"""Opens folders and small files that tools can replace.

Does not follow links below the base, and does not block on pipes and devices.
"""

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

_MAX_BYTES = 200
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
# How often to try to create a folder that a tool keeps replacing with a link.
_ATTEMPTS = 10
# About this many names are removed at once, which takes a few hundredths of a second.
_MAX_NAMES = 1_000


@contextmanager
def opened(base: Path, *names: str) -> Iterator[int]:
    """The descriptor of the folder `base/names…`.

    Raises OSError, for example if a name is a link.
    """
    folder = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in names:
            folder = _descend(folder, os.open(name, _FOLDER, dir_fd=folder))
        yield folder
    finally:
        os.close(folder)


@contextmanager
def created(base: Path, *names: str) -> Iterator[int]:
    """Like `opened`, but creates missing folders and replaces links and files with folders.

    Raises OSError.
    """
    folder = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in names:
            folder = _descend(folder, _create(folder, name))
        yield folder
    finally:
        os.close(folder)


def _descend(folder: int, child: int) -> int:
    """Closes the folder and returns its child, so that only one descriptor is open."""
    os.close(folder)
    return child


def _create(folder: int, name: str) -> int:
    for _ in range(_ATTEMPTS):
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=folder)
        try:
            return os.open(name, _FOLDER, dir_fd=folder)
        except NotADirectoryError:
            os.unlink(name, dir_fd=folder)
    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), name)


def names(folder: int, limit: int | None = None) -> list[str]:
    """The names of the folder's entries, at most `limit`. Raises OSError."""
    with os.scandir(folder) as entries:
        return [entry.name for entry in islice(entries, limit)]


def read(folder: int, name: str) -> str:
    """Returns the text that `write` wrote.

    Raises OSError, for example if the file is not a plain file, and ValueError for invalid UTF-8.
    """
    with open_plain(folder, name, os.O_RDONLY) as file:
        return file.read(_MAX_BYTES).decode()


def write(folder: int, name: str, text: str) -> None:
    """Creates the file, or replaces the file of this name atomically.

    If a folder has this name, gives the folder another name. Raises OSError.
    """
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
    """Removes the file or link of this name, if there is one.

    If a folder has this name, gives the folder another name. Raises OSError.
    """
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        # Deleting a folder that a tool has filled could block the controller for long.
        os.rename(name, f"{name}.{time.time_ns()}", src_dir_fd=folder, dst_dir_fd=folder)


def remove_some(folder: int, name: str) -> bool:
    """Removes the file or folder of this name, or a part of it. Returns whether nothing is left.

    Moves each subfolder to the top of the tree before reading it, so that trees of any depth can be
    removed. Follows no links. Adds missing permissions to the folders. Raises OSError.
    """
    if _unlink(folder, name):
        return True
    with _writable(folder, name) as top:
        handled = 0
        while entries := names(top, _MAX_NAMES):
            for entry in entries:
                handled += 1 if _unlink(top, entry) else _empty(top, entry)
                if handled > _MAX_NAMES:
                    return False
    os.rmdir(name, dir_fd=folder)
    return True


def _empty(top: int, name: str) -> int:
    """Moves the folder's subfolders to the top and removes its files, at most _MAX_NAMES at once.

    Removes the folder if nothing is left. Returns the number of handled entries, including the
    folder.
    """
    with _writable(top, name) as folder:
        entries = names(folder, _MAX_NAMES)
        for entry in entries:
            if not _unlink(folder, entry):
                # A folder can be moved only by a user who may write to it.
                with _writable(folder, entry):
                    os.rename(entry, uuid4().hex, src_dir_fd=folder, dst_dir_fd=top)
    if len(entries) < _MAX_NAMES:
        os.rmdir(name, dir_fd=top)
    return len(entries) + 1


def _unlink(folder: int, name: str) -> bool:
    """Removes the file or link of this name, if there is one. Returns False if it is a folder."""
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        return False
    return True


@contextmanager
def _writable(folder: int, name: str) -> Iterator[int]:
    """The descriptor of the folder of this name. Gives its owner all permissions first.

    Raises OSError.
    """
    path_only = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
    try:
        Path(f"/proc/self/fd/{path_only}").chmod(0o700)
        descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=path_only)
    finally:
        os.close(path_only)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_log(folder: int, name: str) -> BinaryIO:
    """Opens a plain file for appending and reading.

    Removes anything else of this name. Raises OSError.
    """
    with suppress(FileNotFoundError):
        if not _is_plain(os.stat(name, dir_fd=folder, follow_symlinks=False)):
            remove(folder, name)
    return open_plain(folder, name, os.O_RDWR | os.O_APPEND | os.O_CREAT)


def open_plain(folder: int, name: str, flags: int) -> BinaryIO:
    """Opens a plain file. Does not block on a pipe. Raises OSError, for example for a pipe."""
    descriptor = os.open(name, flags | os.O_NONBLOCK | os.O_NOFOLLOW, 0o600, dir_fd=folder)
    file = os.fdopen(descriptor, "rb" if flags == os.O_RDONLY else "ab")
    if not _is_plain(os.fstat(descriptor)):
        file.close()
        raise OSError(errno.EINVAL, "not a plain file", name)
    return file


def _is_plain(status: os.stat_result) -> bool:
    """Whether the file is a regular file with only one name.

    A file with a second name may be a hard link to a file outside of the folder.
    """
    return stat.S_ISREG(status.st_mode) and status.st_nlink <= 1
