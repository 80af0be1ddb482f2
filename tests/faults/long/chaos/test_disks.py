"""Disks are full as long as one fault lasts, and their content is kept after the run."""

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import cast

import pytest

from tests.faults.long.chaos.disks import disks
from tests.faults.long.chaos.faults import Faults
from tests.faults.long.chaos.plan import Fault, Kind, Target
from tests.support import small_disk
from tests.support.stack import Stack


def is_full(folder: Path) -> bool:
    return os.statvfs(folder).f_bavail == 0


def test_faults_that_overlap_keep_a_disk_full_until_the_last_is_over(tmp_path: Path) -> None:
    with disks(tmp_path, 1.0) as mounted:
        if not mounted.has(Target.LOGS):
            pytest.skip(small_disk.refusal())
        mounted.fill(Target.LOGS)
        mounted.fill(Target.LOGS)
        mounted.free(Target.LOGS)
        assert is_full(tmp_path / "logs")
        mounted.free(Target.LOGS)
        assert not is_full(tmp_path / "logs")


@pytest.mark.parametrize("ends", [lambda: None, lambda: 1 / 0], ids=["normally", "by an error"])
def test_the_content_of_a_disk_is_kept_when_the_run_ends(
    tmp_path: Path, ends: Callable[[], object]
) -> None:
    pods = tmp_path / "pods"
    with suppress(ZeroDivisionError), disks(tmp_path, 1.0) as mounted:
        if not mounted.has(Target.PODS):
            pytest.skip(small_disk.refusal())
        (pods / "ws_1").mkdir()
        (pods / "ws_1" / "log").write_text("a line")
        os.mkfifo(pods / "ws_1" / "pipe")
        mounted.fill(Target.PODS)
        ends()
    assert sorted(str(path.relative_to(pods)) for path in pods.rglob("*")) == ["ws_1", "ws_1/log"]
    assert not pods.is_mount()


def test_faults_of_disks_are_missed_where_mounts_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small_disk, "refusal", lambda: "not root")
    with disks(tmp_path, 1.0) as mounted:
        assert [mounted.has(target) for target in (Target.PODS, Target.LOGS, Target.DATABASE)] == [
            False
        ] * 3
        faults = Faults(cast(Stack, None), [], mounted)
        asyncio.run(faults.run([Fault(0.0, Kind.FILL, Target.LOGS, 0.1, 0)]))
    assert [hit.missed for hit in faults.hits] == [True]
