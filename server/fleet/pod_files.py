"""Small files of a pod's folder. Tools can write there too, and whatever they leave in a file's place must not hold the reader."""

import errno
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

_MAX_BYTES = 100


def read(path: Path) -> str:
    """What `write` wrote. Raises OSError and ValueError, also when it is no plain file any more."""
    with open_plain(path, os.O_RDONLY) as file:
        return file.read(_MAX_BYTES).decode()


def write(path: Path, text: str) -> None:
    """Puts the file there in one step, in place of a pipe or a link too. Raises OSError."""
    descriptor, new = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        Path(new).replace(path)
    except OSError:
        with suppress(OSError):
            Path(new).unlink()
        raise


def open_log(path: Path) -> BinaryIO:
    """The file, to append to; what is no plain file makes way for one. Raises OSError."""
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            path.unlink()
    return open_plain(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def open_plain(path: Path, flags: int) -> BinaryIO:
    """Opens a plain file. Raises OSError for a link, and for a pipe or a device, without waiting for its other end."""
    file = os.fdopen(os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW, 0o600), "rb" if flags == os.O_RDONLY else "ab")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a plain file", str(path))
    return file
