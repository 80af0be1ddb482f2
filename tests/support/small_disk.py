"""A disk that a test can fill: a tmpfs of a few MiB. Mounting takes root with CAP_SYS_ADMIN."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

_BALLAST = ".ballast"
# The last write fills what is left of a block.
_CHUNKS = (1 << 20, 4096, 1)


@cache
def refusal() -> str:
    """Why this machine mounts no disk; empty when it does."""
    with TemporaryDirectory(prefix="small-disk-") as folder:
        try:
            _mount(Path(folder), 1 << 20)
        except (OSError, RuntimeError) as error:
            return f"no small disk can be mounted here: {error}"
        _unmount(Path(folder))
    return ""


@contextmanager
def small_disk(path: Path, size_bytes: int) -> Iterator[None]:
    """Mounts an empty disk of this size on the folder, which is made if absent. Skips the test
    where mounts are refused.
    """
    if reason := refusal():
        pytest.skip(reason)
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    _mount(path, size_bytes)
    try:
        yield
    finally:
        _unmount(path)


def fill(path: Path) -> None:
    """Takes all free space of the disk. Repeat it to take space that was freed since."""
    descriptor = os.open(path / _BALLAST, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        for size in _CHUNKS:
            block = bytes(size)
            # ENOSPC. A short write is followed by it.
            with suppress(OSError):
                while True:
                    os.write(descriptor, block)
    finally:
        os.close(descriptor)


def free(path: Path) -> None:
    """Gives back what `fill` took."""
    (path / _BALLAST).unlink(missing_ok=True)


def _mount(path: Path, size_bytes: int) -> None:
    _run("mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=0700", "small-disk", str(path))


def _unmount(path: Path) -> None:
    try:
        _run("umount", str(path))
    except RuntimeError:
        # A process still has a file or its working directory there: the disk goes with the last of
        # them.
        _run("umount", "--lazy", str(path))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            done.stderr.strip() or f"{command[0]} failed with exit code {done.returncode}"
        )
