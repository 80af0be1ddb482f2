"""The log files of the stack's programs: opened for them, and rotated while they append.

A file that has reached its size is copied and emptied in place, so that no program has to take
part: Envoy and PostgreSQL could not. The newest copy is `<name>.1`. What is written between the
copy and the cut is lost.

Tools run as the user of the stack and may put anything in the place of a file: no link is followed,
and no pipe blocks.
"""

import asyncio
import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import structlog

from server.config import Settings

log = structlog.get_logger()

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_PLAIN = os.O_NOFOLLOW | os.O_NONBLOCK
_CHUNK_BYTES = 1 << 16
# A disk with less is full: old copies make way for what is logged now.
_MIN_FREE_BYTES = 1 << 20
_INTERVAL_SECONDS = 2.0
# There may be thousands of agents, and each logs little.
_AGENT_LOG_BYTES, _AGENT_LOG_FILES = 1 << 20, 2


@dataclass(frozen=True, slots=True)
class LogFile:
    """A file to which a program appends, and its bounds."""

    path: Path
    max_bytes: int
    # This one and its copies.
    files: int


def open_log(path: Path) -> BinaryIO:
    """Opens the file for appending. Where that fails, the program starts without a log."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _PLAIN, 0o600)
        return os.fdopen(_checked(descriptor), "ab")
    except OSError as error:
        log.warning("log_file_unavailable", path=str(path), error=str(error))
        return Path(os.devnull).open("ab")


async def keep_rotating(settings: Settings) -> None:
    """Rotates the stack's log files, again and again. Cancel it to end it."""
    while True:
        # A folder that cannot be read now is read the next time.
        with suppress(OSError):
            await asyncio.to_thread(lambda: rotate(_of_stack(settings)))
        await asyncio.sleep(_INTERVAL_SECONDS)


def _of_stack(settings: Settings) -> Iterator[LogFile]:
    # The operator may have replaced the folder by a link to another disk.
    for path in settings.logs_dir.resolve().glob("*.log"):
        yield LogFile(path, settings.log_max_bytes, settings.log_files)
    for path in (settings.state_dir / "fleet").glob("*/log"):
        yield LogFile(path, _AGENT_LOG_BYTES, _AGENT_LOG_FILES)


def rotate(log_files: Iterable[LogFile]) -> None:
    """Rotates files that have reached their size. When a disk is full, removes its oldest copy."""
    full: dict[Path, set[str]] = {}
    for log_file in log_files:
        # Deleted meanwhile, or replaced by something else.
        with suppress(OSError), _opened(log_file.path.parent) as folder:
            _rotate(folder, log_file)
            if _free_bytes(folder) < _MIN_FREE_BYTES:
                full.setdefault(log_file.path.parent, set()).add(log_file.path.name)
    _remove_oldest(full)


def _rotate(folder: int, log_file: LogFile) -> None:
    name = log_file.path.name
    current = _checked(os.open(name, os.O_RDWR | _PLAIN, dir_fd=folder))
    try:
        size = os.fstat(current).st_size
        if size < log_file.max_bytes:
            return
        # Emptied all the same.
        with suppress(OSError):
            _shift(folder, name, log_file.files)
            if log_file.files > 1:
                _copy(folder, name, current, size - log_file.max_bytes, size + log_file.max_bytes)
        os.ftruncate(current, 0)
    finally:
        os.close(current)


def _shift(folder: int, name: str, files: int) -> None:
    for number in sorted(_copies(folder, name), reverse=True):
        if number >= files - 1:
            os.unlink(f"{name}.{number}", dir_fd=folder)
        else:
            older = f"{name}.{number + 1}"
            os.rename(f"{name}.{number}", older, src_dir_fd=folder, dst_dir_fd=folder)


def _copy(folder: int, name: str, source: int, start: int, end: int) -> None:
    """Copies up to the end of the file, which may grow meanwhile.

    On a full disk, older copies make way. When there are none, this copy is given up.
    """
    newest = f"{name}.1"
    target = os.open(newest, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder)
    try:
        while start < end and (chunk := os.pread(source, _CHUNK_BYTES, start)):
            try:
                start += os.write(target, chunk)
            except OSError as error:
                older = _copies(folder, name) - {1}
                if error.errno != errno.ENOSPC or not older:
                    os.unlink(newest, dir_fd=folder)
                    raise
                os.unlink(f"{name}.{max(older)}", dir_fd=folder)
    finally:
        os.close(target)


def _remove_oldest(names: dict[Path, set[str]]) -> None:
    """Removes the oldest copy of these files, by folder."""
    found = []
    for path, of_folder in names.items():
        with suppress(OSError), _opened(path) as folder:
            for name in of_folder:
                for number in _copies(folder, name):
                    copy = f"{name}.{number}"
                    made_at = os.stat(copy, dir_fd=folder, follow_symlinks=False).st_mtime
                    found.append((made_at, path, copy))
    if found:
        _, path, copy = min(found)
        with suppress(OSError), _opened(path) as folder:
            os.unlink(copy, dir_fd=folder)
            log.warning("log_file_removed", path=str(path / copy), reason="the disk is full")


def _copies(folder: int, name: str) -> set[int]:
    pattern = re.compile(re.escape(name) + r"\.([1-9][0-9]{0,8})")
    return {int(match[1]) for entry in os.listdir(folder) if (match := pattern.fullmatch(entry))}


def _free_bytes(folder: int) -> int:
    found = os.fstatvfs(folder)
    return found.f_bavail * found.f_frsize


def _checked(descriptor: int) -> int:
    """Returns the descriptor of a plain file. Raises OSError for others, and for a hard link."""
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a plain file")
    return descriptor


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    folder = os.open(path, _FOLDER)
    try:
        yield folder
    finally:
        os.close(folder)
