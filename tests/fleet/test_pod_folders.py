"""Pods on this machine, in folders that hold whatever tools have written."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from server.auth.pod_tokens import new_key, public_key
from server.core.ids import new_workspace_id
from server.core.runtime import AgentIdentity
from server.core.workspace import Workspace, WorkspaceStatus
from server.fleet.local_pods import LocalPods, PodSpec
from tests.core.world import NOW, ORG


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
    )


@pytest.fixture
def pods(tmp_path: Path) -> LocalPods:
    def spec_for(agent: AgentIdentity, files_dir: str) -> PodSpec:
        return PodSpec(
            workspace_id=agent.workspace_id,
            epoch=agent.epoch,
            runtime_addresses=["127.0.0.1:1"],
            runtime_token="token",
            control_plane_public_key=public_key(new_key()),
            files_dir=files_dir,
            # Ends the agent right after it has read its settings.
            model="none",
            model_timeout_seconds=1,
            tool_timeout_seconds=1,
            openai_base_url="",
            openai_api_key="",
        )

    return LocalPods(tmp_path, spec_for)


@pytest.mark.parametrize("module", ["server/__init__.py", "select.py"])
async def test_an_agent_runs_no_module_of_the_workspace(pods: LocalPods, workspace: Workspace, tmp_path: Path, module: str) -> None:
    written = tmp_path / workspace.id / "files" / module
    written.parent.mkdir(parents=True)
    written.write_text("raise SystemExit('taken from the workspace')")

    await pods.start(workspace)
    async with asyncio.timeout(30):
        await pods.ended(workspace)

    assert "There is no model" in pods.last_words(workspace.id)


async def test_a_pod_ends_also_when_a_tool_has_replaced_its_files(pods: LocalPods, workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / workspace.id / "pid").mkdir(parents=True)
    (tmp_path / workspace.id / "epoch").write_bytes(b"\xff")

    # It ends; whether all that ran there has ended is not known, for what its files say proves nothing.
    assert await pods.end(workspace, grace_seconds=0) is False
    assert not pods.is_alive(workspace)
    assert not pods.was_started(workspace)


# What would hold whoever reads it, or fill its memory, or has it write elsewhere.
@pytest.mark.parametrize("replace", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "endless"])
@pytest.mark.parametrize("name", ["pid", "created", "epoch", "log"])
async def test_a_file_that_a_tool_has_replaced_holds_nobody(
    pods: LocalPods, workspace: Workspace, tmp_path: Path, name: str, replace: Callable[[Path], None]
) -> None:
    folder = tmp_path / workspace.id
    folder.mkdir()
    (folder / "pid").write_text("1")
    (folder / name).unlink(missing_ok=True)
    replace(folder / name)

    assert not pods.is_alive(workspace)
    assert not pods.was_started(workspace)
    assert pods.last_words(workspace.id) == ""
    # It ends; whether all that ran there has ended is not known, for what its files say proves nothing.
    assert await pods.end(workspace, grace_seconds=0) is False

    await pods.start(workspace)
    async with asyncio.timeout(30):
        await pods.ended(workspace)
    assert pods.was_started(workspace)
    assert "There is no model" in pods.last_words(workspace.id)
