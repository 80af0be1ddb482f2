"""Files that hold a secret."""

import os
from pathlib import Path


def write_private(path: Path, text: str) -> None:
    """Creates or replaces the file atomically. Only its owner can ever read it. Raises OSError.

    A file keeps its owner if root replaces it, so that its programs can read it.
    """
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        if os.geteuid() == 0 and path.exists() and (kept := path.stat()).st_uid != 0:
            os.fchown(file.fileno(), kept.st_uid, kept.st_gid)
        file.write(text)
    unfinished.replace(path)
