"""The directory in which tools run."""

import os
import weakref
from pathlib import Path


class DirectoryLostError(Exception):
    """The directory was deleted or replaced. The text says which of the two."""


class WorkingDirectory:
    """A directory that is opened once. If it is replaced later, tools do not run in the new one."""

    def __init__(self, path: Path) -> None:
        """Raises OSError if the directory cannot be opened, or if the path is a symbolic link."""
        self._descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
        weakref.finalize(self, os.close, self._descriptor)
        # The kernel's path of the directory, which contains no link.
        self.path = self.by_descriptor.readlink()

    @property
    def by_descriptor(self) -> Path:
        """A path to exactly this directory, valid in this process and in its forked children."""
        return Path(f"/proc/self/fd/{self._descriptor}")

    def check(self) -> None:
        """Raises DirectoryLostError if the path no longer leads to the directory."""
        try:
            found = self.path.lstat()
        except OSError:
            raise DirectoryLostError("The workspace's folder was deleted.") from None
        if not os.path.samestat(found, os.fstat(self._descriptor)):
            raise DirectoryLostError(
                "The workspace's folder was replaced by another one, by a file or by a link."
            )
