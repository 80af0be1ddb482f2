"""A disk that a test can fill: a tmpfs of a few MiB. Mounting it needs root and CAP_SYS_ADMIN."""

import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

_BALLAST = ".ballast"
# The sizes of the writes in bytes. Smaller writes fill the space into which larger ones do not fit.
_CHUNKS = (1 << 20, 4096, 1)


@cache
def refusal() -> str:
    """Returns why this machine cannot mount such a disk; empty if it can."""
    with TemporaryDirectory(prefix="small-disk-") as folder:
        try:
            _mount(Path(folder), 1 << 20)
        except (OSError, RuntimeError) as error:
            return f"no small disk can be mounted here: {error}"
        _unmount(Path(folder))
    return ""


@contextmanager
def small_disk(path: Path, size_bytes: int) -> Iterator[None]:
    """Mounts an empty disk on a folder. Creates the folder if it does not exist.

    Skips the test if the machine cannot mount a disk.
    """
    if reason := refusal():
        pytest.skip(reason)
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    _mount(path, size_bytes)
    try:
        yield
    finally:
        _unmount(path)


def fill(path: Path, spare_bytes: int = 0) -> None:
    """Fills the disk, but leaves `spare_bytes` free.

    A second call fills the space that has become free since the first one.
    """
    descriptor = os.open(path / _BALLAST, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        for size in _CHUNKS:
            block = bytes(size)
            # The loop ends when a write raises ENOSPC. A partial write raises nothing, but the next
            # one does.
            with suppress(OSError):
                while True:
                    os.write(descriptor, block)
        os.truncate(descriptor, max(0, os.fstat(descriptor).st_size - spare_bytes))
    finally:
        os.close(descriptor)


def free(path: Path) -> None:
    """Frees the space that `fill` has taken."""
    (path / _BALLAST).unlink(missing_ok=True)


def shrink_pipe(pid: int) -> None:
    """Shrinks the pipe to which a program logs, so that it is soon full if nobody reads it."""
    pipe = os.open(f"/proc/{pid}/fd/2", os.O_WRONLY | os.O_NONBLOCK)
    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 4096)
    os.close(pipe)


def _mount(path: Path, size_bytes: int) -> None:
    _run("mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=0700", "small-disk", str(path))


def _unmount(path: Path) -> None:
    try:
        _run("umount", str(path))
    except RuntimeError:
        # A process still has an open file or its working directory on the disk. A lazy unmount
        # takes effect once all such processes have ended.
        _run("umount", "--lazy", str(path))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            done.stderr.strip() or f"{command[0]} failed with exit code {done.returncode}"
        )
