"""Pods on this machine whose folders were changed by tools."""

import asyncio
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from evershell.core.runtime import AgentIdentity
from evershell.core.workspace import Workspace
from evershell.fleet.local.local_pods import LocalPods
from evershell.pod.spec import PodSpec
from tests.support.small_agent import spec_for


@pytest.fixture
def pods(tmp_path: Path) -> LocalPods:
    """Pods whose agents exit after reading their settings, because their model does not exist."""

    def spec(agent: AgentIdentity) -> PodSpec:
        secret = "00" * 32
        return replace(spec_for(agent), model="none", runtime_secret=secret, signal_secret=secret)

    return LocalPods(tmp_path, spec)


@pytest.mark.parametrize("module", ["evershell/core/__init__.py", "select.py"])
async def test_an_agent_runs_no_module_of_the_workspace(
    pods: LocalPods, workspace: Workspace, tmp_path: Path, module: str
) -> None:
    written = tmp_path / "pods" / workspace.id / "files" / module
    written.parent.mkdir(parents=True)
    written.write_text("raise SystemExit('imported from the workspace')")

    await pods.start(workspace)
    async with asyncio.timeout(30):
        await pods.wait_exit(workspace)

    assert "There is no model" in pods.log_tail(workspace.id)


def _hard_link(path: Path) -> None:
    """Links to a file outside the workspace, on the same disk."""
    secret = path.parents[2] / "secret"
    secret.write_text("a secret line\n")
    path.hardlink_to(secret)


def _folder(path: Path) -> None:
    (path / "below").mkdir(parents=True)


# In place of a file, these make a reader block, fill its memory, fail, or read another file.
_REPLACEMENTS = pytest.mark.parametrize(
    "put",
    [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), _hard_link, _folder],
    ids=["pipe", "endless", "hard link", "folder"],
)


@_REPLACEMENTS
@pytest.mark.parametrize("name", ["agent", "log"])
async def test_a_record_that_was_replaced_is_ignored(
    pods: LocalPods,
    workspace: Workspace,
    tmp_path: Path,
    name: str,
    put: Callable[[Path], None],
) -> None:
    folder = tmp_path / "fleet" / workspace.id
    folder.mkdir(parents=True)
    put(folder / name)

    assert not pods.is_alive(workspace)
    assert not pods.was_started(workspace)
    assert pods.log_tail(workspace.id) == ""
    # Without the record of the agent, nobody knows whether all of its processes have ended.
    assert await pods.end(workspace, grace_seconds=0) is (name == "log")

    await _start_and_await_end(pods, workspace)
    if put is _hard_link:
        assert (tmp_path / "secret").read_text() == "a secret line\n"


@_REPLACEMENTS
async def test_a_pid_file_that_was_replaced_becomes_a_plain_file(
    pods: LocalPods, workspace: Workspace, tmp_path: Path, put: Callable[[Path], None]
) -> None:
    path = tmp_path / "pods" / workspace.id / "pid"
    path.parent.mkdir(parents=True)
    put(path)

    await _start_and_await_end(pods, workspace)

    assert stat.S_ISREG(path.lstat().st_mode) and int(path.read_text()) > 1
    if put is _hard_link:
        assert (tmp_path / "secret").read_text() == "a secret line\n"


@pytest.mark.parametrize("replacement", ["link", "file"])
@pytest.mark.parametrize("place", ["pods", "pods/{}", "pods/{}/files", "fleet", "fleet/{}"])
async def test_a_link_or_file_at_the_path_of_a_folder_is_replaced(
    pods: LocalPods, workspace: Workspace, tmp_path: Path, place: str, replacement: str
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    path = tmp_path / place.format(workspace.id)
    path.parent.mkdir(parents=True, exist_ok=True)
    if replacement == "link":
        path.symlink_to(target)
    else:
        path.write_text("no folder")

    assert not pods.is_alive(workspace) and not pods.was_started(workspace)
    await pods.end(workspace, grace_seconds=0)
    await _start_and_await_end(pods, workspace)

    assert list(target.iterdir()) == []
    assert stat.S_ISDIR(path.lstat().st_mode)


async def _start_and_await_end(pods: LocalPods, workspace: Workspace) -> None:
    """Starts an agent that exits because of its unknown model."""
    await pods.start(workspace)
    async with asyncio.timeout(30):
        await pods.wait_exit(workspace)
    assert pods.was_started(workspace)
    assert "There is no model" in pods.log_tail(workspace.id)
