"""Pods on this machine, with a small program instead of the agent.

tests/contracts tests what these pods promise to the controller. The tests here also show that a
tool cannot use a forged record to end other processes, or to protect its own processes.
"""

import asyncio
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeAlias

import psutil
import pytest

from evershell.core.runtime import AgentIdentity
from evershell.core.workspace import Workspace
from evershell.fleet.local import local_pods, pod_files
from evershell.fleet.local.local_pods import LocalPods, end_every_pod
from evershell.fleet.local.processes import ProcessId
from evershell.pod.process import wait_exit
from tests.support import pod_processes, world
from tests.support.fleet import RUN_ID
from tests.support.pod_processes import subreaper
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
        "LC_CTYPE",
    }
    assert received["cwd"] == files
    assert "secret" not in str(environment)


@pytest.mark.parametrize("is_ended", [True, False])
async def test_an_agent_that_ended_unwatched_leaves_no_zombie(
    pods: LocalPods, workspace: Workspace, is_ended: bool
) -> None:
    """While the controller does not lead, it does not wait for the exit of the agent."""
    await pods.start(workspace)
    # For a moment after a process starts, the kernel does not show its environment.
    (agent,) = await eventually_async(lambda: pod_processes.of_pod(workspace.id))
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


Start: TypeAlias = Callable[[LocalPods], Awaitable[list[ProcessId]]]

# The agent becomes a subreaper, as real agents do, and starts a tool in a separate session, without
# an environment. The tool ignores SIGTERM, starts another tool, and writes the ids of both.
_DETACHED = """
trap '' TERM
sleep 600 &
echo $! $$ > tools.new
mv tools.new tools
wait
"""
_AGENT = f"""#!{sys.executable} -S
import ctypes, subprocess, sys, time
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
subprocess.Popen(["/bin/sh", "-c", {_DETACHED!r}], env={{}}, start_new_session=True)
time.sleep(600)
"""


@pytest.fixture
async def tools(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Start]:
    """Yields a function that starts a pod whose agent has detached tools, and returns the tools."""
    program = tmp_path / "detaching"
    program.write_text(_AGENT)
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    started: list[ProcessId] = []

    async def start(pods: LocalPods) -> list[ProcessId]:
        await pods.start(workspace)
        written = tmp_path / "pods" / workspace.id / "files" / "tools"
        await eventually_async(written.exists)
        started.extend(ProcessId.of(int(pid)) for pid in written.read_text().split())
        return started

    with subreaper():
        yield start
    for each in started:
        each.send_signal(signal.SIGKILL)


@pytest.mark.parametrize("grace_seconds", [0, 0.1])
@pytest.mark.parametrize("ends", ["the one that started it", "another one"])
async def test_an_end_ends_detached_tools_of_an_agent_that_lives(
    tools: Start, workspace: Workspace, tmp_path: Path, ends: str, grace_seconds: float
) -> None:
    """An agent should end its tools before it ends at SIGTERM. This agent does not."""
    pods, other = adopting(tmp_path), LocalPods(tmp_path, spec_for)
    started = await tools(pods)
    controller = pods if ends == "the one that started it" else other
    is_known = await controller.end(workspace, grace_seconds)
    assert is_known is (controller is pods or grace_seconds == 0)
    assert is_known is not any(each.is_running() for each in started)


@pytest.mark.parametrize("ends", ["the one that started it", "another one"])
async def test_tools_of_a_dead_agent_are_ended_or_reported(
    tools: Start, workspace: Workspace, tmp_path: Path, ends: str
) -> None:
    """Only the controller that started the agent can find the tools, which become its children."""
    pods, other = adopting(tmp_path), LocalPods(tmp_path, spec_for)
    started = await tools(pods)
    os.kill(int((tmp_path / "pods" / workspace.id / "pid").read_text()), signal.SIGKILL)
    await asyncio.wait_for(pods.wait_exit(workspace), 10)
    controller = pods if ends == "the one that started it" else other
    is_known = await controller.end(workspace, 0)
    assert is_known is (controller is pods)
    assert is_known is not any(each.is_running() for each in started)


@pytest.mark.parametrize("started_by", ["a controller of the stack", "another controller"])
async def test_the_pods_of_a_stack_end_with_their_tools(
    tools: Start, tmp_path: Path, stranger: "subprocess.Popen[bytes]", started_by: str
) -> None:
    """The agents of another controller do not descend from the process that ends the stack."""
    others = {child.pid for child in psutil.Process().children()}
    started = await tools(LocalPods(tmp_path, spec_for))
    if started_by == "another controller":
        others = {child.pid for child in psutil.Process().children()}
    await end_every_pod(tmp_path, lambda: others)
    assert not any(each.is_running() for each in started)
    assert stranger.poll() is None


def adopting(state_dir: Path) -> LocalPods:
    """Pods of a controller that ends the processes that its dead agents leave."""
    others = {child.pid for child in psutil.Process().children()}
    return LocalPods(state_dir, spec_for, foreign_children=others)


def forge(state_dir: Path, workspace_id: str, epoch: int, process: ProcessId | None) -> None:
    """Writes the records of an agent, in the folders of the controller and of the pod."""
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
    # The pod of the other workspace was not affected.
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
