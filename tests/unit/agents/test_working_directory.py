"""The shell tool runs commands only in its original folder. If that was replaced, it runs none."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from evershell.agents.tools import DirectoryLostError, ShellTool
from tests.unit.agents.conftest import shell_call


async def test_a_command_is_not_run_in_a_deleted_folder(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    tool = ShellTool(files, "ws_1", 7)
    files.rmdir()
    with pytest.raises(DirectoryLostError, match="folder was deleted"):
        await tool.run(shell_call("true"))


@pytest.mark.parametrize("by", ["link", "folder", "file"])
@pytest.mark.parametrize("what", ["files", "."])
async def test_a_command_is_not_run_in_a_replaced_folder(
    tmp_path: Path, what: str, by: str
) -> None:
    pod, other = tmp_path / "pod", tmp_path / "other"
    for folder in (pod, other):
        (folder / "files").mkdir(parents=True)
    tool = ShellTool(pod / "files", "ws_1", 7)
    (pod / what).rename(tmp_path / "moved")
    if by == "link":
        (pod / what).symlink_to(other / what)
    elif by == "folder":
        (pod / "files").mkdir(parents=True)
    else:
        (pod / what).touch()
    # If a file replaces the pod's folder, the folder of the workspace's files is gone.
    with pytest.raises(
        DirectoryLostError, match="deleted" if (what, by) == (".", "file") else "replaced"
    ):
        await tool.run(shell_call("touch stray"))
    assert not list(tmp_path.rglob("stray"))


async def test_a_folder_replaced_just_before_the_start_is_not_entered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, other = tmp_path / "files", tmp_path / "other"
    files.mkdir()
    other.mkdir()
    tool = ShellTool(files, "ws_1", 7)
    start = asyncio.create_subprocess_exec

    async def replace_then_start(*arguments: Any, **named: Any) -> Any:
        files.rename(tmp_path / "moved")
        files.symlink_to(other)
        return await start(*arguments, **named)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", replace_then_start)
    assert (await tool.run(shell_call("touch here"))).exit_code == 0
    assert (tmp_path / "moved" / "here").exists() and list(other.iterdir()) == []


def test_a_link_is_refused_as_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(OSError, match="link"):
        ShellTool(tmp_path / "link", "ws_1", 7)
