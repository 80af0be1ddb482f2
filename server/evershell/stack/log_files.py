"""The log files of the stack's programs.

A program writes its log to a pipe, and a thread copies it to the file. The pipe does not block: if
the disk is full or hangs, the pipe fills up and the program loses log lines, but continues.

Errors are also written to separate files in the folder `errors`, so that other lines, of which
callers can cause any number, do not displace errors.
"""

import errno
import fcntl
import os
import re
import threading
import time
from contextlib import suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path

import structlog

from evershell.fleet.local import pod_files

log = structlog.get_logger()

# The largest pipe that any user may request. One write of Envoy (64 KiB) would fill a default pipe.
_PIPE_BYTES = 1 << 20
# The maximum size of one read. It must not exceed the smallest `max_bytes` of a file.
_CHUNK_BYTES = 1 << 16
# Lines that arrive within this time are written to the file together, instead of one by one.
_BATCH_SECONDS = 0.05
_RETRY_SECONDS = 1.0
_ERRORS_FOLDER = "errors"
_ERROR_FILES = 2
# Matches a line with an error: from a program of the service, from the access log, from Envoy's own
# log, or from PostgreSQL, which begins the further lines of a message with a tab. A caller's text
# does not match, because its quotes are escaped in JSON.
_ERROR = re.compile(
    rb'"level": ?"(?:error|critical)"|"status": ?5\d\d\b'
    rb"|^\[[^]\n]*\]\[\d+\]\[(?:error|critical)\]"
    rb"|^[\d-]+ [\d:.]+ \w+ \[\d+\] (?:ERROR|FATAL|PANIC):",
    re.MULTILINE,
)


class LogFile:
    """The log of one program. The program writes its log to `descriptor`.

    When the file has reached `max_bytes`, it is renamed to `<name>.1`, an existing `<name>.1` to
    `<name>.2` and so on. At most `files` files are kept.
    """

    def __init__(self, path: Path, max_bytes: int, files: int) -> None:
        """`max_bytes` is at least 64 KiB. Raises OSError if no pipe can be opened."""
        self._all = _RotatedFile(path, max_bytes, files)
        errors_path = path.parent / _ERRORS_FOLDER / path.name
        self._errors = _RotatedFile(errors_path, max_bytes, _ERROR_FILES)
        source, self.descriptor = os.pipe()
        # The kernel refuses a larger pipe to a user who already has many pipes.
        with suppress(OSError):
            fcntl.fcntl(self.descriptor, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        os.set_blocking(self.descriptor, False)
        self._thread = threading.Thread(target=self._copy, args=(source,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Closes the descriptor of this process. The log ends when no other process has it open."""
        os.close(self.descriptor)

    def wait(self, seconds: float) -> None:
        """Waits until the log has ended, but at most for `seconds`."""
        self._thread.join(seconds)

    def _copy(self, source: int) -> None:
        rest = b""
        while data := os.read(source, _CHUNK_BYTES):
            self._all.write(data)
            lines, _, rest = (rest + data).rpartition(b"\n")
            self._errors.write(_errors(lines))
            # Limits the memory for a long line. Its middle is left out of the file of the errors.
            rest = rest[:_CHUNK_BYTES]
            if len(data) < _CHUNK_BYTES:
                time.sleep(_BATCH_SECONDS)
        os.close(source)


def _errors(lines: bytes) -> bytes:
    """Returns only the lines that contain an error."""
    found, end = [], -1
    for match in _ERROR.finditer(lines):
        if match.start() > end:
            begin = lines.rfind(b"\n", 0, match.start()) + 1
            end = lines.find(b"\n", match.end())
            end = len(lines) if end < 0 else end
            found.append(lines[begin:end] + b"\n")
    return b"".join(found)


class _RotatedFile:
    """A file of at most `max_bytes`, and its predecessors."""

    def __init__(self, path: Path, max_bytes: int, files: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        # This handler only renames files. It never opens them.
        self._rotation = RotatingFileHandler(path, backupCount=files - 1, delay=True)

    def write(self, data: bytes) -> None:
        """Writes all of the data, and retries until it can be written."""
        is_failing = False
        while data:
            try:
                data = data[self._append(data) :]
            except OSError as error:
                if not is_failing:
                    is_failing = True
                    log.warning("log_file_unavailable", path=str(self._path), error=str(error))
                if error.errno == errno.ENOSPC:
                    self._remove_oldest()
                time.sleep(_RETRY_SECONDS)

    def _append(self, data: bytes) -> int:
        """Returns how many bytes were written. Raises OSError."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Tools may run as the user of the stack and replace any file, so links are not followed.
        with pod_files.opened(self._path.parent) as folder:
            with pod_files.open_log(folder, self._path.name) as file:
                if os.fstat(file.fileno()).st_size + len(data) <= self._max_bytes:
                    return os.write(file.fileno(), data)
            with suppress(OSError):
                self._rotation.doRollover()
            with pod_files.open_log(folder, self._path.name) as file:
                # The file still has its content if the rename failed, or if `files` is 1.
                os.ftruncate(file.fileno(), 0)
                return os.write(file.fileno(), data)

    def _remove_oldest(self) -> None:
        """Removes the oldest of the renamed files of all programs."""
        with suppress(OSError):
            older = [(each.lstat().st_mtime, each) for each in self._path.parent.glob("*.log.*")]
            if older:
                _, oldest = min(older)
                oldest.unlink()
                log.warning("log_file_removed", path=str(oldest))
