"""The files of workspaces are measured, and a workspace with too many gets its task cancelled."""

import os
from pathlib import Path

import pytest

from evershell.core.task_limits import REQUESTER
from evershell.fleet.local.file_limit import FileLimit, size_of
from tests.support.world import World

LIMIT_MB = 1


@pytest.fixture
def world() -> World:
    return World()


def write(folder: Path, name: str, size: int) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"x" * size)


def test_files_in_all_folders_count_and_targets_of_links_do_not(tmp_path: Path) -> None:
    write(tmp_path, "outside/large", 400_000)
    files = tmp_path / "files"
    write(files, "one", 100_000)
    write(files, "folder/deep/two", 100_000)
    (files / "link").symlink_to(tmp_path / "outside")
    (files / "file").symlink_to(tmp_path / "outside/large")
    assert 200_000 <= size_of(files, 2**30) < 300_000
    assert size_of(tmp_path / "gone", 2**30) == 0


def test_small_files_count_and_the_measurement_ends_at_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(300):
        write(tmp_path, f"{number % 3}/{number}", 0)
    scanned: list[str] = []
    scan = os.scandir

    def note(path: str) -> "os._ScandirIterator[str]":
        scanned.append(path)
        return scan(path)

    monkeypatch.setattr("os.scandir", note)
    assert size_of(tmp_path, 100 * 4096) == 100 * 4096
    assert len(scanned) == 2


async def test_a_task_is_cancelled_at_the_limit_and_those_of_other_workspaces_are_not(
    tmp_path: Path, world: World
) -> None:
    (large, running), (small, other), idle = (
        await world.add_busy(),
        await world.add_busy(),
        await world.add(),
    )
    for at, size in ((large, 2**20), (small, 2**19), (idle, 2**20)):
        write(tmp_path, f"{at.id}/files/data", size)
    write(tmp_path, "ws_unknown/files/data", 2**20)
    measured: list[tuple[int, int, int]] = []
    limit = FileLimit(
        tmp_path, LIMIT_MB, world.store, world.clock, lambda *sizes: measured.append(sizes)
    )
    await limit.sweep()
    cancel = (await world.task(large.id, running.id)).cancel
    assert cancel is not None
    assert (cancel.requested_by, cancel.reason) == (REQUESTER, "workspace_files reached: 1 MiB")
    assert (await world.task(small.id, other.id)).cancel is None
    ((largest, total, most),) = measured
    assert largest == most == 2**20
    assert total >= 3.5 * 2**20
    await limit.sweep()
    assert (await world.event_types(large.id)).count("task_cancel_requested") == 1
