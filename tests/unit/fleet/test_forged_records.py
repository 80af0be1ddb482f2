"""Forged records: a tool cannot use them to end other processes or to protect its own."""

import asyncio
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from evershell.core.workspace import Workspace
from evershell.fleet.local.local_pods import LocalPods, end_every_pod
from evershell.fleet.local.processes import ProcessId
from tests.support import pod_processes, world
from tests.support.fleet import RUN_ID
from tests.support.small_agent import spec_for, wait_start


def forge(state_dir: Path, workspace_id: str, epoch: int, process: ProcessId | None) -> None:
    """Writes the records of such an agent, to the folders of the controller and of the pod."""
    started = f" {process.pid} {process.started_at}" if process is not None else ""
    for folder in (state_dir / "fleet" / workspace_id, state_dir / "pods" / workspace_id):
        (folder / "files").mkdir(parents=True, exist_ok=True)
        (folder / "agent").write_text(f"{epoch} {RUN_ID}{started}")
        (folder / "epoch").write_text(str(epoch))
        if process is not None:
            (folder / "pid").write_text(str(process.pid))
            (folder / "created").write_text(str(process.started_at))


@pytest.mark.parametrize("agent_runs", [True, False])
async def test_another_process_that_a_record_names_is_not_ended(
    pods: LocalPods,
    workspace: Workspace,
    tmp_path: Path,
    stranger: "subprocess.Popen[bytes]",
    agent_runs: bool,
) -> None:
    if agent_runs:
        await pods.start(workspace)
        await wait_start(tmp_path, workspace)
    forge(tmp_path, workspace.id, workspace.epoch, ProcessId.of(stranger.pid))
    assert pods.is_alive(workspace) is agent_runs
    if not agent_runs:
        await asyncio.wait_for(pods.wait_exit(workspace), 10)
    assert await pods.end(workspace, 0) is agent_runs
    assert stranger.poll() is None


async def test_another_process_in_the_session_that_a_record_names_is_not_ended(
    pods: LocalPods, workspace: Workspace, tmp_path: Path
) -> None:
    """The leader of the session has ended, so its environment cannot be read."""
    line = "sleep 600 > /dev/null & echo $!"
    leader = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", line, start_new_session=True, stdout=subprocess.PIPE
    )
    named = ProcessId(leader.pid, 1)
    output, _ = await leader.communicate()
    member = ProcessId.of(int(output))
    try:
        assert os.getsid(member.pid) == leader.pid
        forge(tmp_path, workspace.id, workspace.epoch, named)
        assert await pods.end(workspace, 0) is False
        assert member.is_running()
    finally:
        os.kill(member.pid, 9)


async def test_the_agent_of_another_workspace_is_not_ended(
    pods: LocalPods, workspace: Workspace, tmp_path: Path
) -> None:
    other = world.workspace(epoch=workspace.epoch, run_id=RUN_ID)
    await pods.start(other)
    await wait_start(tmp_path, other)
    (agent,) = pod_processes.of_pod(other.id)
    forge(tmp_path, workspace.id, workspace.epoch, ProcessId.of(agent.pid))
    assert not pods.is_alive(workspace)
    assert await LocalPods(tmp_path, spec_for).end(workspace, 0) is False
    assert pods.is_alive(other)
    assert await pods.end(other, 0) is True


@pytest.mark.parametrize("epoch", [1, 99])
async def test_an_epoch_in_a_record_does_not_end_an_agent_of_another_epoch(
    pods: LocalPods, workspace: Workspace, tmp_path: Path, epoch: int
) -> None:
    await pods.start(workspace)
    await wait_start(tmp_path, workspace)
    (agent,) = pod_processes.of_pod(workspace.id)
    forge(tmp_path, workspace.id, epoch, ProcessId.of(agent.pid))
    other = LocalPods(tmp_path, spec_for)
    assert not other.was_started(workspace) and not other.is_alive(workspace)
    for ended in (workspace.epoch - 1, workspace.epoch):
        assert await other.end(replace(workspace, epoch=ended), 0) is False
    assert pods.is_alive(workspace)
    assert await pods.end(workspace, 0) is True
    assert pod_processes.of_pod(workspace.id) == []


@pytest.mark.parametrize(
    "forged",
    [
        "deleted",
        "nonsense",
        f"1 {RUN_ID} 99999999999 1",
        f"3 {RUN_ID} 1 1",
        "",
        f"3 {RUN_ID}",
        "3",
        "9" * 190,
    ],
)
async def test_a_controller_knows_without_records_what_it_has_started(
    pods: LocalPods, workspace: Workspace, tmp_path: Path, forged: str
) -> None:
    await pods.start(workspace)
    await wait_start(tmp_path, workspace)
    record = tmp_path / "fleet" / workspace.id / "agent"
    if forged == "deleted":
        record.unlink()
    else:
        record.write_text(forged)
    assert pods.was_started(workspace) and pods.is_alive(workspace)
    other = LocalPods(tmp_path, spec_for)
    assert not other.is_alive(workspace)
    assert await pods.end(workspace, 0) is True
    assert pod_processes.of_pod(workspace.id) == []


@pytest.mark.parametrize("how", ["link to another's", "another folder"])
@pytest.mark.parametrize("what", ["files", "."])
async def test_a_pod_whose_folder_was_replaced_is_not_alive(
    pods: LocalPods, workspace: Workspace, tmp_path: Path, what: str, how: str
) -> None:
    other = world.workspace(epoch=workspace.epoch, run_id=RUN_ID)
    for each in (workspace, other):
        await pods.start(each)
        await wait_start(tmp_path, each)
    path = tmp_path / "pods" / workspace.id / what
    path.rename(tmp_path / "moved")
    if how == "another folder":
        (path / "files").mkdir(parents=True)
    else:
        path.symlink_to(tmp_path / "pods" / other.id / what)
    for controller in (pods, LocalPods(tmp_path, spec_for)):
        assert not controller.has_files(workspace.id) and not controller.is_alive(workspace)
    assert await pods.end(workspace, 0) is True
    assert pod_processes.of_pod(workspace.id) == []
    # The other pod was not changed.
    assert pods.is_alive(other)
    assert (tmp_path / "pods" / other.id / "pid").exists()
    await pods.start(workspace)
    assert pods.is_alive(workspace) and pods.is_alive(other)
    await pods.end(other, 0)


async def test_an_agent_does_not_start_in_a_folder_that_replaced_its_own(
    pods: LocalPods, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "target").mkdir()
    files, start = tmp_path / "pods" / workspace.id / "files", subprocess.Popen

    def replace_then_start(*arguments: Any, **named: Any) -> Any:
        files.rename(tmp_path / "moved")
        files.symlink_to(tmp_path / "target")
        return start(*arguments, **named)

    with monkeypatch.context() as replacing:
        replacing.setattr(subprocess, "Popen", replace_then_start)
        await pods.start(workspace)
    assert not pods.is_alive(workspace)
    async with asyncio.timeout(10):
        while not (tmp_path / "moved" / "received.json").exists():
            await asyncio.sleep(0.005)
    assert list((tmp_path / "target").iterdir()) == []
    assert await pods.end(workspace, 0) is True


async def test_a_stack_ends_its_agents_without_their_folders(
    pods: LocalPods, workspace: Workspace, tmp_path: Path, stranger: "subprocess.Popen[bytes]"
) -> None:
    foreign = world.workspace(epoch=workspace.epoch, run_id=RUN_ID)
    other_stack = LocalPods(tmp_path / "other", spec_for)
    (tmp_path / "other").mkdir()
    await other_stack.start(foreign)
    await wait_start(tmp_path / "other", foreign)
    others = {child.pid for child in psutil.Process().children()}
    await pods.start(workspace)
    await wait_start(tmp_path, workspace)
    (tmp_path / "fleet" / workspace.id).rename(tmp_path / "hidden")
    (tmp_path / "pods" / workspace.id).rename(tmp_path / "moved")
    # A record claims a workspace of the other stack for this stack.
    forge(tmp_path, foreign.id, workspace.epoch, ProcessId.of(stranger.pid))
    await end_every_pod(tmp_path, lambda: others)
    assert pod_processes.of_pod(workspace.id) == []
    assert other_stack.is_alive(foreign) and stranger.poll() is None
    await other_stack.end(foreign, 0)
