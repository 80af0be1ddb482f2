"""Pods on this machine, with a small program instead of the agent.

tests/contracts tests what they promise to the controller.
"""

import asyncio
import errno
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from evershell.core.runtime import AgentIdentity
from evershell.core.workspace import Workspace
from evershell.fleet.local import local_pods, pod_files, processes
from evershell.fleet.local.local_pods import LocalPods
from evershell.fleet.local.processes import Pod
from evershell.pod.process import wait_exit
from tests.support.small_agent import spec_for, wait_start
from tests.support.waiting import eventually_async, settle


async def test_an_agent_receives_its_secrets_on_standard_input_only(
    pods: LocalPods, workspace: Workspace, tmp_path: Path
) -> None:
    await pods.start(workspace)
    received = await wait_start(tmp_path, workspace)
    files = str(tmp_path / "pods" / workspace.id / "files")
    assert received["argv"] == ["-P", "-m", "evershell.agents"]
    assert json.loads(str(received["stdin"])) == asdict(spec_for(AgentIdentity(workspace.id, 3)))
    environment = received["environment"]
    assert isinstance(environment, dict)
    assert set(environment) <= {
        "PATH",
        "LANG",
        "EVERSHELL_WORKSPACE_ID",
        "EVERSHELL_EPOCH",
        "EVERSHELL_STATE_DIR",
        "LC_CTYPE",
    }
    assert received["cwd"] == files
    assert "secret" not in str(environment)


async def test_the_process_id_of_the_agent_is_on_disk(
    pods: LocalPods, workspace: Workspace, tmp_path: Path
) -> None:
    await pods.start(workspace)
    pid = int((tmp_path / "pods" / workspace.id / "pid").read_text())
    assert [process.pid for process in processes.find(Pod(workspace.id))] == [pid]


@pytest.mark.parametrize("is_ended", [True, False])
async def test_an_agent_that_ended_unwatched_leaves_no_zombie(
    pods: LocalPods, workspace: Workspace, is_ended: bool
) -> None:
    """Nobody waits for its exit while no controller, or another one, leads."""
    await pods.start(workspace)
    (agent,) = processes.find(Pod(workspace.id))
    agent.kill()
    await wait_exit(agent.pid)
    assert agent.status() == psutil.STATUS_ZOMBIE
    if is_ended:
        await pods.end(workspace, grace_seconds=0)
        assert not psutil.pid_exists(agent.pid)
        return
    reaping = asyncio.create_task(pods.reap())
    await eventually_async(lambda: not psutil.pid_exists(agent.pid))
    reaping.cancel()


async def test_the_files_of_an_ended_pod_are_kept(
    pods: LocalPods, workspace: Workspace, tmp_path: Path
) -> None:
    await pods.start(workspace)
    await wait_start(tmp_path, workspace)
    assert await pods.end(workspace, 5) is True
    assert not (tmp_path / "pods" / workspace.id / "pid").exists()
    assert (tmp_path / "pods" / workspace.id / "files" / "received.json").exists()


async def test_a_pod_ends_on_a_full_disk(
    pods: LocalPods, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pods.start(workspace)
    await wait_start(tmp_path, workspace)

    def write(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pod_files, "write", write)
    assert await pods.end(workspace, 0) is True
    assert await LocalPods(tmp_path, spec_for).end(workspace, 0) is True
    with pytest.raises(OSError, match="No space left"):
        await pods.start(workspace)


@pytest.mark.parametrize("what", ["files", "."])
async def test_a_pod_whose_folder_was_deleted_can_be_started_again(
    pods: LocalPods, workspace: Workspace, tmp_path: Path, what: str
) -> None:
    await pods.start(workspace)
    await wait_start(tmp_path, workspace)
    shutil.rmtree(tmp_path / "pods" / workspace.id / what)
    assert not pods.has_files(workspace.id) and not pods.is_alive(workspace)
    assert await pods.end(workspace, 5) is True
    await pods.start(workspace)
    assert pods.is_alive(workspace)


async def test_a_wait_for_the_exit_ends_when_the_folder_is_deleted(
    pods: LocalPods, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_pods, "_FILES_CHECK_SECONDS", 0.01)
    await pods.start(workspace)
    await wait_start(tmp_path, workspace)
    waiting = asyncio.create_task(pods.wait_exit(workspace))
    await settle()
    assert not waiting.done()
    shutil.rmtree(tmp_path / "pods" / workspace.id)
    await asyncio.wait_for(waiting, 10)
    await asyncio.wait_for(pods.wait_exit(workspace), 10)


async def test_a_pod_that_was_just_started_is_alive_and_can_be_ended(
    pods: LocalPods, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process has no environment for a moment while it starts. It still counts as the pod's."""
    await pods.start(workspace)
    with monkeypatch.context() as loading:
        loading.setattr(psutil.Process, "environ", lambda process: {})
        assert pods.is_alive(workspace)
        assert await pods.end(workspace, grace_seconds=0) is True
        assert not pods.is_alive(workspace)
    assert processes.find(Pod(workspace.id)) == []
