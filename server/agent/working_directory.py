"""The directory in which tools run."""

import os
import weakref
from pathlib import Path


class DirectoryLostError(Exception):
    """The directory is no longer where it was; the text says why, for people."""


class WorkingDirectory:
    """A directory that is opened once, so that what is put in its place later is never entered."""

    def __init__(self, path: Path) -> None:
        """Raises OSError, also when the path is a link."""
        self._descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
        weakref.finalize(self, os.close, self._descriptor)
        # The kernel's own name for it, which holds no link.
        self.path = self.by_descriptor.readlink()

    @property
    def by_descriptor(self) -> Path:
        """A path to exactly this directory, in this process and in one that it forks."""
        return Path(f"/proc/self/fd/{self._descriptor}")

    def check(self) -> None:
        """Raises DirectoryLostError when the directory's path does not lead to it any more."""
        try:
            found = self.path.lstat()
        except OSError:
            raise DirectoryLostError("The workspace's folder was deleted.") from None
        if not os.path.samestat(found, os.fstat(self._descriptor)):
            raise DirectoryLostError("The workspace's folder was replaced by another one, by a file or by a link.")
