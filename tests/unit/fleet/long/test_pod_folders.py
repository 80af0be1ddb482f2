"""Pods on this machine whose folders were changed by tools."""

import asyncio
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from evershell.core.ids import new_workspace_id
from evershell.core.runtime import AgentIdentity
from evershell.core.workspace import Workspace, WorkspaceStatus
from evershell.fleet.local.local_pods import LocalPods
from evershell.pod.spec import PodSpec
from tests.support.fleet import RUN_ID
from tests.support.world import NOW, ORG


@pytest.fixture
def workspace() -> Workspace:
    return Workspace(
        id=new_workspace_id(),
        org_id=ORG,
        name="",
        status=WorkspaceStatus.PROVISIONING,
        created_by_user_id=None,
        created_at=NOW,
        updated_at=NOW,
        run_id=RUN_ID,
    )


@pytest.fixture
def pods(tmp_path: Path) -> LocalPods:
    def spec_for(agent: AgentIdentity) -> PodSpec:
        return PodSpec(
            workspace_id=agent.workspace_id,
            epoch=agent.epoch,
            runtime_addresses=["127.0.0.1:1"],
            runtime_secret="00" * 32,
            signal_secret="00" * 32,
            # The agent exits after it has read its settings, because no model has this name.
            model="none",
            model_timeout_seconds=1,
            tool_timeout_seconds=1,
            openai_base_url="",
            openai_api_key="",
        )

    return LocalPods(tmp_path, spec_for)


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


# A reader would block, fill its memory, or read another file.
_REPLACEMENTS = pytest.mark.parametrize(
    "replace",
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
    replace: Callable[[Path], None],
) -> None:
    folder = tmp_path / "fleet" / workspace.id
    folder.mkdir(parents=True)
    replace(folder / name)

    assert not pods.is_alive(workspace)
    assert not pods.was_started(workspace)
    assert pods.log_tail(workspace.id) == ""
    # Without the record of the agent, it is unknown whether all its processes have ended.
    assert await pods.end(workspace, grace_seconds=0) is (name == "log")

    await _start_and_await_end(pods, workspace)
    if replace is _hard_link:
        assert (tmp_path / "secret").read_text() == "a secret line\n"


@_REPLACEMENTS
async def test_a_pid_file_that_was_replaced_becomes_a_plain_file(
    pods: LocalPods, workspace: Workspace, tmp_path: Path, replace: Callable[[Path], None]
) -> None:
    path = tmp_path / "pods" / workspace.id / "pid"
    path.parent.mkdir(parents=True)
    replace(path)

    await _start_and_await_end(pods, workspace)

    assert stat.S_ISREG(path.lstat().st_mode) and int(path.read_text()) > 1
    if replace is _hard_link:
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
