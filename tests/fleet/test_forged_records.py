"""Records that a tool has forged: they end no other process, and they protect none."""

import asyncio
import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.core.workspace import Workspace
from server.fleet import processes
from server.fleet.local_pods import LocalPods, end_every_pod
from server.fleet.processes import Pod, ProcessId
from tests.fleet.small_agent import given, spec_for
from tests.fleet.surroundings import RUN_ID
from tests.support.world import workspace


def forge(state_dir: Path, workspace_id: str, epoch: int, process: ProcessId | None) -> None:
    """Writes what a controller would write of such an agent, into its records and beside the tool's
    files.
    """
    started = f" {process.pid} {process.started_at}" if process is not None else ""
    for folder in (state_dir / "fleet" / workspace_id, state_dir / "pods" / workspace_id):
        (folder / "files").mkdir(parents=True, exist_ok=True)
        (folder / "agent").write_text(f"{epoch} {RUN_ID}{started}")
        (folder / "epoch").write_text(str(epoch))
        if process is not None:
            (folder / "pid").write_text(str(process.pid))
            (folder / "created").write_text(str(process.started_at))


@pytest.mark.parametrize("ours", [True, False])
async def test_a_stranger_that_a_record_names_lives_on(
    pods: LocalPods, at: Workspace, tmp_path: Path, stranger: "subprocess.Popen[bytes]", ours: bool
) -> None:
    if ours:
        await pods.start(at)
        await given(tmp_path, at)
    forge(tmp_path, at.id, at.epoch, ProcessId.of(stranger.pid))
    assert pods.is_alive(at) is ours
    if not ours:
        await asyncio.wait_for(pods.wait_exit(at), 10)
    assert await pods.end(at, 5) is ours
    assert stranger.poll() is None
    await end_every_pod(tmp_path, list)
    assert stranger.poll() is None


async def test_a_stranger_in_the_session_that_a_record_names_lives_on(
    pods: LocalPods, at: Workspace, tmp_path: Path
) -> None:
    """The session's leader has ended, so nothing can be asked of it."""
    line = "sleep 600 > /dev/null & echo $!"
    leader = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", line, start_new_session=True, stdout=subprocess.PIPE
    )
    named = ProcessId(leader.pid, 1)
    output, _ = await leader.communicate()
    member = ProcessId.of(int(output))
    try:
        assert os.getsid(member.pid) == leader.pid
        forge(tmp_path, at.id, at.epoch, named)
        assert await pods.end(at, 0) is False
        assert member.is_running()
    finally:
        os.kill(member.pid, 9)


async def test_the_agent_of_another_workspace_lives_on(
    pods: LocalPods, at: Workspace, tmp_path: Path
) -> None:
    other = workspace(epoch=at.epoch, run_id=RUN_ID)
    await pods.start(other)
    await given(tmp_path, other)
    (agent,) = processes.find(Pod(other.id))
    forge(tmp_path, at.id, at.epoch, ProcessId.of(agent.pid))
    assert not pods.is_alive(at)
    assert await LocalPods(tmp_path, spec_for).end(at, 0) is False
    assert pods.is_alive(other)
    assert await pods.end(other, 0) is True


@pytest.mark.parametrize("epoch", [1, 99])
async def test_an_epoch_in_a_record_neither_protects_nor_condemns(
    pods: LocalPods, at: Workspace, tmp_path: Path, epoch: int
) -> None:
    await pods.start(at)
    await given(tmp_path, at)
    (agent,) = processes.find(Pod(at.id))
    forge(tmp_path, at.id, epoch, ProcessId.of(agent.pid))
    other = LocalPods(tmp_path, spec_for)
    assert not other.was_started(at) and not other.is_alive(at)
    await other.end(replace(at, epoch=at.epoch - 1), 0)
    assert pods.is_alive(at)
    await other.end(at, 0)
    assert processes.find(Pod(at.id)) == []


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
async def test_a_controller_remembers_what_it_has_started(
    pods: LocalPods, at: Workspace, tmp_path: Path, forged: str
) -> None:
    await pods.start(at)
    await given(tmp_path, at)
    record = tmp_path / "fleet" / at.id / "agent"
    if forged == "deleted":
        record.unlink()
    else:
        record.write_text(forged)
    assert pods.was_started(at) and pods.is_alive(at)
    other = LocalPods(tmp_path, spec_for)
    assert not other.is_alive(at)
    assert await pods.end(at, 0) is True
    assert processes.find(Pod(at.id)) == []


@pytest.mark.parametrize("how", ["link to another's", "another folder"])
@pytest.mark.parametrize("what", ["files", "."])
async def test_a_pod_whose_folder_was_replaced_is_not_alive(
    pods: LocalPods, at: Workspace, tmp_path: Path, what: str, how: str
) -> None:
    other = workspace(epoch=at.epoch, run_id=RUN_ID)
    for each in (at, other):
        await pods.start(each)
        await given(tmp_path, each)
    path = tmp_path / "pods" / at.id / what
    path.rename(tmp_path / "moved")
    if how == "another folder":
        (path / "files").mkdir(parents=True)
    else:
        path.symlink_to(tmp_path / "pods" / other.id / what)
    for controller in (pods, LocalPods(tmp_path, spec_for)):
        assert not controller.has_files(at.id) and not controller.is_alive(at)
    assert await pods.end(at, 5) is True
    assert processes.find(Pod(at.id)) == []
    # Nothing of the other one was touched.
    assert pods.is_alive(other)
    assert (tmp_path / "pods" / other.id / "pid").exists()
    await pods.start(at)
    assert pods.is_alive(at) and pods.is_alive(other)
    await pods.end(other, 0)


async def test_a_folder_that_is_replaced_right_before_the_start_is_not_entered(
    pods: LocalPods, at: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "target").mkdir()
    files, start = tmp_path / "pods" / at.id / "files", subprocess.Popen

    def replace_then_start(*arguments: Any, **named: Any) -> Any:
        files.rename(tmp_path / "moved")
        files.symlink_to(tmp_path / "target")
        return start(*arguments, **named)

    with monkeypatch.context() as replacing:
        replacing.setattr(subprocess, "Popen", replace_then_start)
        await pods.start(at)
    assert not pods.is_alive(at)
    async with asyncio.timeout(10):
        while not (tmp_path / "moved" / "given.json").exists():
            await asyncio.sleep(0.005)
    assert list((tmp_path / "target").iterdir()) == []
    assert await pods.end(at, 0) is True


async def test_a_stack_ends_its_agents_whatever_has_become_of_their_folders(
    pods: LocalPods, at: Workspace, tmp_path: Path, stranger: "subprocess.Popen[bytes]"
) -> None:
    foreign = workspace(epoch=at.epoch, run_id=RUN_ID)
    of_another_stack = LocalPods(tmp_path / "other", spec_for)
    (tmp_path / "other").mkdir()
    await of_another_stack.start(foreign)
    await given(tmp_path / "other", foreign)
    await pods.start(at)
    await given(tmp_path, at)
    (tmp_path / "fleet" / at.id).rename(tmp_path / "hidden")
    (tmp_path / "pods" / at.id).rename(tmp_path / "gone")
    # It pretends that the other stack's workspace is one of this stack.
    forge(tmp_path, foreign.id, at.epoch, ProcessId.of(stranger.pid))
    began = time.monotonic()
    await end_every_pod(tmp_path, list)
    assert time.monotonic() - began < 5
    assert processes.find(Pod(at.id)) == []
    assert of_another_stack.is_alive(foreign) and stranger.poll() is None
    await of_another_stack.end(foreign, 0)
