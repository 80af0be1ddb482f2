"""Pods on this machine, with a small program instead of the agent.

tests/contracts tests what they promise to the controller.
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
from dataclasses import asdict
from pathlib import Path
from typing import TypeAlias

import psutil
import pytest

from evershell.core.runtime import AgentIdentity
from evershell.core.workspace import Workspace
from evershell.fleet.local import local_pods, pod_files
from evershell.fleet.local.local_pods import LocalPods, end_every_pod
from evershell.fleet.local.processes import ProcessId
from evershell.pod.process import wait_exit
from tests.support import pod_processes
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


async def test_the_process_id_of_the_agent_is_on_disk(
    pods: LocalPods, workspace: Workspace, tmp_path: Path
) -> None:
    await pods.start(workspace)
    pid = int((tmp_path / "pods" / workspace.id / "pid").read_text())
    assert [process.pid for process in pod_processes.of_pod(workspace.id)] == [pid]


@pytest.mark.parametrize("is_ended", [True, False])
async def test_an_agent_that_ended_unwatched_leaves_no_zombie(
    pods: LocalPods, workspace: Workspace, is_ended: bool
) -> None:
    """Nobody waits for its exit while no controller, or another one, leads."""
    await pods.start(workspace)
    (agent,) = pod_processes.of_pod(workspace.id)
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
    assert await pods.end(workspace, 0) is True
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
    assert await pods.end(workspace, 0) is True
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


Start: TypeAlias = Callable[[LocalPods], Awaitable[list[ProcessId]]]

# Becomes a subreaper like the agent of the package, and starts a tool in a session of its own that
# has no environment and ignores SIGTERM. The tool writes its process id and starts another one.
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
    """Starts a pod whose agent has detached tools. Returns the tools."""
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
    """An agent that ends at SIGTERM has ended its tools. This one does not, and is not trusted."""
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
    """They are children of the controller that started the agent. Another one cannot find them."""
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
    """The agents of another controller are no descendants of the process that ends the stack."""
    others = {child.pid for child in psutil.Process().children()}
    started = await tools(LocalPods(tmp_path, spec_for))
    if started_by == "another controller":
        others = {child.pid for child in psutil.Process().children()}
    await end_every_pod(tmp_path, lambda: others)
    assert not any(each.is_running() for each in started)
    assert stranger.poll() is None


def adopting(state_dir: Path) -> LocalPods:
    """Pods whose controller ends what its dead agents leave."""
    others = {child.pid for child in psutil.Process().children()}
    return LocalPods(state_dir, spec_for, foreign_children=others)
