"""Opens the log files of the stack's programs, and rotates them while the programs append.

A file that has reached its size limit is copied and truncated in place, because the programs cannot
reopen their logs. The newest copy is `<name>.1`. Lines that are written between the copy and the
truncation are lost.

Tools run as the user of the stack and may replace any file, so links to files are not followed, and
pipes do not block.
"""

import asyncio
import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO

import structlog

from evershell.server.config import Settings
from evershell.server.fleet import pod_files
from evershell.server.fleet.pod_records import PodRecords

log = structlog.get_logger()

_CHUNK_BYTES = 1 << 16
# A disk with less free space counts as full: old copies are removed.
_MIN_FREE_BYTES = 1 << 20
_INTERVAL_SECONDS = 2.0
# Smaller limits for agents: there may be thousands of them, and each logs little.
_AGENT_LOG_BYTES, _AGENT_LOG_FILES = 1 << 20, 2


@dataclass(frozen=True, slots=True)
class LogFile:
    """A file to which a program appends, and the limits of its rotation."""

    base: Path
    # The path below the base: the folders, then the file.
    names: tuple[str, ...]
    max_bytes: int
    # The number of files: this one and its copies.
    files: int


def open_log(folder: Path, name: str) -> BinaryIO:
    """Opens the file for appending.

    Returns the null device if that fails, so that the program starts without a log.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with pod_files.opened(folder) as opened:
            return pod_files.open_log(opened, name)
    except OSError as error:
        log.warning("log_file_unavailable", path=str(folder / name), error=str(error))
        return Path(os.devnull).open("ab")


async def keep_rotating(settings: Settings) -> None:
    """Rotates the stack's log files every _INTERVAL_SECONDS until it is cancelled."""
    while True:
        # The next round tries again.
        with suppress(OSError):
            await asyncio.to_thread(lambda: rotate(_of_stack(settings)))
        await asyncio.sleep(_INTERVAL_SECONDS)


def _of_stack(settings: Settings) -> Iterator[LogFile]:
    # Opened by its path, because the operator may have linked the folder to another disk.
    for path in settings.logs_dir.glob("*.log"):
        yield LogFile(settings.logs_dir, (path.name,), settings.log_max_bytes, settings.log_files)
    for names in PodRecords(settings.state_dir).log_names():
        yield LogFile(settings.state_dir, names, _AGENT_LOG_BYTES, _AGENT_LOG_FILES)


def rotate(log_files: Iterable[LogFile]) -> None:
    """Rotates the files that have reached their size limit.

    If a disk is full, removes the oldest copy on full disks.
    """
    on_full_disks = []
    for log_file in log_files:
        # The file may have been deleted or replaced since it was listed.
        with suppress(OSError), _folder(log_file) as folder:
            _rotate(folder, log_file)
            if _free_bytes(folder) < _MIN_FREE_BYTES:
                on_full_disks.append(log_file)
    if on_full_disks:
        _remove_oldest(on_full_disks)


def _folder(log_file: LogFile) -> AbstractContextManager[int]:
    return pod_files.opened(log_file.base, *log_file.names[:-1])


def _rotate(folder: int, log_file: LogFile) -> None:
    name = log_file.names[-1]
    with pod_files.open_plain(folder, name, os.O_RDWR) as current:
        size = os.fstat(current.fileno()).st_size
        if size < log_file.max_bytes:
            return
        # The file is truncated below even if the copy fails, so that it cannot fill the disk.
        with suppress(OSError):
            _shift(folder, name, log_file.files)
            if log_file.files > 1:
                begin, end = size - log_file.max_bytes, size + log_file.max_bytes
                _copy(folder, name, current.fileno(), begin, end)
        os.ftruncate(current.fileno(), 0)


def _shift(folder: int, name: str, files: int) -> None:
    for number in sorted(_copies(folder, name), reverse=True):
        if number >= files - 1:
            os.unlink(f"{name}.{number}", dir_fd=folder)
        else:
            older = f"{name}.{number + 1}"
            os.rename(f"{name}.{number}", older, src_dir_fd=folder, dst_dir_fd=folder)


def _copy(folder: int, name: str, source: int, start: int, end: int) -> None:
    """Copies the file from `start` to its end, or to `end` if the file grows during the copy.

    On a full disk, removes older copies. If there are none, removes this copy and raises OSError.
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


def _remove_oldest(log_files: Iterable[LogFile]) -> None:
    found = []
    for log_file in log_files:
        with suppress(OSError), _folder(log_file) as folder:
            *folders, name = log_file.names
            for number in _copies(folder, name):
                copy = f"{name}.{number}"
                copied_at = os.stat(copy, dir_fd=folder, follow_symlinks=False).st_mtime
                found.append((copied_at, replace(log_file, names=(*folders, copy))))
    if found:
        _, oldest = min(found, key=itemgetter(0))
        with suppress(OSError), _folder(oldest) as folder:
            os.unlink(oldest.names[-1], dir_fd=folder)
            log.warning("log_file_removed", path=str(oldest.base.joinpath(*oldest.names)))


def _copies(folder: int, name: str) -> set[int]:
    pattern = re.compile(re.escape(name) + r"\.([1-9][0-9]{0,8})")
    return {int(match[1]) for entry in os.listdir(folder) if (match := pattern.fullmatch(entry))}


def _free_bytes(folder: int) -> int:
    found = os.fstatvfs(folder)
    return found.f_bavail * found.f_frsize
