"""The removal of files that tools have left."""

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from evershell.fleet.local import pod_files

# _LINUX_CAPABILITY_VERSION_3 of linux/capability.h.
_CAPABILITIES = 0x20080522


def fill(top: Path) -> None:
    """Makes more files than one call removes, folders too deep for a path, and locked folders."""
    wide = top / "wide"
    wide.mkdir(parents=True)
    for number in range(1_200):
        (wide / f"file {number}").touch()
    for number in range(50):
        (wide / f"folder {number}").mkdir()
    (wide / "link").symlink_to(top.parent / "kept")
    (wide / "dangling").symlink_to("nowhere")
    os.mkfifo(wide / "pipe")
    deep = os.open(top, os.O_RDONLY)
    for _ in range(300):
        os.mkdir("a folder", dir_fd=deep)
        inner = os.open("a folder", os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = inner
    os.close(deep)
    locked = top / "locked"
    (locked / "inner").mkdir(parents=True)
    (locked / "inner" / "file").touch()
    (locked / "inner").chmod(0)
    locked.chmod(0)
    top.chmod(0)


def drop_capabilities() -> None:
    """Makes file permissions apply to this thread even if its user is root."""
    header, sets = (ctypes.c_uint32 * 2)(_CAPABILITIES, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(header, sets) == 0


def remove(base: Path) -> int:
    """Removes `base/files`. Returns how many calls it took."""
    folder = os.open(base, os.O_RDONLY)
    try:
        calls = 1
        while not pod_files.remove_some(folder, "files"):
            calls += 1
        return calls
    finally:
        os.close(folder)


def test_whatever_tools_have_made_is_removed_in_parts(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    fill(tmp_path / "files")
    with ThreadPoolExecutor(1, initializer=drop_capabilities) as thread:
        with pytest.raises(PermissionError):
            thread.submit(os.scandir, tmp_path / "files").result()
        assert thread.submit(remove, tmp_path).result() > 1
    assert list(tmp_path.iterdir()) == [kept]
    assert list(kept.iterdir()) == [kept / "file"]


@pytest.mark.parametrize("kind", ["missing", "link", "file"])
def test_what_is_no_folder_is_removed_at_once(tmp_path: Path, kind: str) -> None:
    (tmp_path / "kept").mkdir()
    if kind == "link":
        (tmp_path / "files").symlink_to("kept")
    elif kind == "file":
        (tmp_path / "files").touch()
    assert remove(tmp_path) == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "kept"]
