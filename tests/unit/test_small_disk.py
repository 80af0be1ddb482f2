"""A small disk can be filled and freed, and is unmounted at the end."""

import errno
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.small_disk import fill, free, small_disk

SIZE_BYTES = 1 << 20


def test_a_filled_disk_refuses_writes_until_it_is_freed(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, SIZE_BYTES):
        (disk / "before").write_bytes(b"x" * 100_001)
        fill(disk)
        with pytest.raises(OSError, match="No space left") as refused:
            (disk / "file").write_bytes(b"x")
        assert refused.value.errno == errno.ENOSPC
        free(disk)
        (disk / "file").write_bytes(b"x" * 500_000)
    assert disk.is_dir()
    assert list(disk.iterdir()) == []


def test_filling_again_takes_the_space_freed_in_between(tmp_path: Path) -> None:
    with small_disk(tmp_path, SIZE_BYTES):
        other = tmp_path / "other"
        other.write_bytes(b"x" * 100_000)
        fill(tmp_path)
        other.unlink()
        fill(tmp_path)
        with pytest.raises(OSError, match="No space left"):
            other.write_bytes(b"x")


def test_a_disk_in_use_is_unmounted_too(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with ExitStack() as later:
        with small_disk(disk, SIZE_BYTES):
            later.enter_context((disk / "busy").open("wb"))
        assert not disk.is_mount()


def test_an_exception_leaves_no_mount(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with pytest.raises(ZeroDivisionError), small_disk(disk, SIZE_BYTES):
        raise ZeroDivisionError
    assert not disk.is_mount()
