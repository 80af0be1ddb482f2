"""Agents that are forked into their sandboxes, with a small program instead of the agent.

tests/contracts tests what the pods of such agents promise. tests/faults/long/attacks tests what a
tool can reach.
"""

import asyncio
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO

import psutil
import pytest
from structlog.testing import capture_logs

from evershell.core.workspace import Workspace
from evershell.fleet.local import fork_server as client
from evershell.fleet.local import isolation, processes
from evershell.fleet.local.fork_server import ForkServer
from evershell.fleet.local.isolation import Sandbox
from evershell.fleet.local.local_pods import LocalPods
from evershell.pod.fork_server import ForkRequest
from tests.support import pod_processes, world
from tests.support.fleet import RUN_ID
from tests.support.forking import fork_server
from tests.support.pod_processes import subreaper
from tests.support.small_agent import AGENT, spec_for, wait_start
from tests.support.waiting import eventually, eventually_async

PYTHON = sys.executable
# A program that ends on SIGTERM, and leaves it to the kernel to end its tool.
STOPPABLE = """
import random, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
subprocess.Popen(["/bin/sleep", "600"])
print(sys.stdin.read(), random.random(), flush=True)
time.sleep(600)
"""
# Lines of /proc/PID/status: the user, the rights, the signals and the threads of a process.
STATUS = re.compile(
    r"(Uid|Gid|Groups|Cap\w+|NoNewPrivs|Seccomp\w*|Sig(?:Blk|Ign|Cgt|Pnd)|Umask|Threads):.*"
)
PRIVATE = ("uid_map", "gid_map", "setgroups", "limits", "oom_score_adj", "personality", "cgroup")


@pytest.fixture
async def server() -> AsyncIterator[ForkServer]:
    with subreaper():
        async with fork_server(STOPPABLE) as started:
            yield started


@pytest.fixture
async def pods(
    sandbox: Sandbox, server: ForkServer, tmp_path: Path, workspace: Workspace
) -> AsyncIterator[LocalPods]:
    found = LocalPods(tmp_path, spec_for, sandbox, fork_server=server)
    yield found
    await found.end(workspace, 0)
    pod_processes.kill(workspace.id)
    processes.reap_all()


def agent_of(state_dir: Path, workspace: Workspace) -> psutil.Process:
    return psutil.Process(int((state_dir / "pods" / workspace.id / "pid").read_text()))


def is_forked(state_dir: Path, workspace: Workspace) -> bool:
    """Whether the agent was forked: it is then a child of this process, and otherwise of bwrap."""
    return agent_of(state_dir, workspace).ppid() == os.getpid()


async def forked(state_dir: Path, workspace: Workspace) -> bool:
    """Whether the agent becomes a child of this process once the process between them has ended."""
    try:
        await eventually_async(lambda: is_forked(state_dir, workspace))
    except TimeoutError:
        return False
    return True


def visible(pid: int) -> dict[str, object]:
    """The kernel's data about what the process may do."""
    folder = Path("/proc", str(pid))
    status = (folder / "status").read_text().splitlines()
    mounts = [line.split() for line in (folder / "mountinfo").read_text().splitlines()]
    return {
        "status": [line for line in status if STATUS.fullmatch(line)],
        "is init": (folder / "status").read_text().split("NSpid:")[1].split()[1] == "1",
        "mounts": {(mount[3], *mount[4:6]) for mount in mounts},
        "root": sorted(each.name for each in (folder / "root").iterdir()),
        "cwd": str((folder / "cwd").readlink()),
        "files": {name: (folder / "fd" / name).readlink().name for name in ("1", "2")},
        "open": len(list((folder / "fd").iterdir())),
        "namespaces": {
            each.name for each in (folder / "ns").iterdir() if not each.samefile(_own(each.name))
        },
        **{name: (folder / name).read_text() for name in PRIVATE},
    }


def _own(namespace: str) -> Path:
    return Path("/proc/self/ns", namespace)


async def test_a_forked_agent_has_what_an_executed_one_has_and_no_more(
    sandbox: Sandbox, tmp_path: Path, workspace: Workspace
) -> None:
    seen, received = [], []
    with subreaper():
        # The fork server has a group that the agents must not have.
        async with fork_server(AGENT, "if os.getuid() == 0: os.setgroups([1])") as server:
            assert server.process is not None
            for each in (server, None):
                pods = LocalPods(tmp_path, spec_for, sandbox, fork_server=each)
                await pods.start(workspace)
                received.append(await wait_start(tmp_path, workspace))
                agent = agent_of(tmp_path, workspace)
                if each is None:
                    assert psutil.Process(agent.ppid()).name() == "bwrap"
                    assert os.getsid(agent.pid) not in (os.getsid(0), server.process.pid)
                else:
                    assert await forked(tmp_path, workspace)
                    assert os.getsid(agent.pid) == server.process.pid
                seen.append(visible(agent.pid))
                assert agent.environ().items() >= {"EVERSHELL_EPOCH": "3"}.items()
                await pods.end(workspace, 0)
                (tmp_path / "pods" / workspace.id / "files" / "received.json").unlink()
            processes.reap_all()
    assert seen[0] == seen[1]
    assert {"user", "mnt", "pid", "ipc", "uts"} <= seen[0]["namespaces"]  # type: ignore[operator]
    assert received[0]["stdin"] == received[1]["stdin"] and received[0]["cwd"] == "/workspace"
    # The shell that bwrap starts adds PWD to the environment.
    environments = [dict(each["environment"]) for each in received]  # type: ignore[call-overload]
    assert environments[1] | environments[0] == environments[1]


async def test_the_death_of_a_forked_agent_is_noticed_and_leaves_no_zombie(
    pods: LocalPods, workspace: Workspace, tmp_path: Path
) -> None:
    await pods.start(workspace)
    assert await forked(tmp_path, workspace)
    waiting = asyncio.create_task(pods.wait_exit(workspace))
    # The agent is reaped only if the wait has begun before its death.
    await asyncio.sleep(0)
    agent = agent_of(tmp_path, workspace)
    agent.kill()
    async with asyncio.timeout(20):
        await waiting
    assert not psutil.pid_exists(agent.pid)
    assert not pods.is_alive(workspace) and not pod_processes.of_pod(workspace.id)


async def test_a_stop_waits_for_nothing_but_the_agent(
    pods: LocalPods, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_KILLED_SECONDS", 600)
    await pods.start(workspace)
    await eventually_async(lambda: "a secret" in pods.log_tail(workspace.id))
    agent = agent_of(tmp_path, workspace)
    async with asyncio.timeout(60):
        assert await pods.end(workspace, grace_seconds=600) is True
    assert not psutil.pid_exists(agent.pid) and not pod_processes.of_pod(workspace.id)


async def test_agents_outlive_their_fork_server_and_the_next_start_has_a_new_one(
    pods: LocalPods, server: ForkServer, workspace: Workspace, tmp_path: Path
) -> None:
    await pods.start(workspace)
    assert server.process is not None
    killed = server.process
    killed.send_signal(signal.SIGKILL)
    await processes.wait_exit_and_reap(killed.pid)
    other = world.workspace(epoch=1, run_id=RUN_ID)
    await pods.start(other)
    assert await forked(tmp_path, other) and server.process != killed
    assert pods.is_alive(workspace) and LocalPods(tmp_path, spec_for).is_alive(workspace)
    await pods.end(other, 0)


async def test_an_agent_is_executed_if_the_fork_server_hangs(
    pods: LocalPods,
    server: ForkServer,
    workspace: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    with monkeypatch.context() as hasty, capture_logs() as logs:
        hasty.setattr(client, "_FORK_SECONDS", 0.1)
        await pods.start(workspace)
    assert not is_forked(tmp_path, workspace)
    assert [line["event"] for line in logs] == ["agent_not_forked"]
    assert await wait_start(tmp_path, workspace)
    other = world.workspace(epoch=1, run_id=RUN_ID)
    await pods.start(other)
    assert await forked(tmp_path, other)
    await pods.end(other, 0)


async def test_an_agent_is_executed_on_a_host_that_refuses_to_enter_sandboxes(
    sandbox: Sandbox, workspace: Workspace, tmp_path: Path
) -> None:
    refused = "class C:\n def __getattr__(s, n): return lambda *a: -1\njoining._libc = C()"
    with subreaper(), capture_logs() as logs:
        async with fork_server(STOPPABLE, refused) as server:
            pods = LocalPods(tmp_path, spec_for, sandbox, fork_server=server)
            await pods.start(workspace)
            assert await wait_start(tmp_path, workspace)
            assert not is_forked(tmp_path, workspace)
            await pods.end(workspace, 0)
            processes.reap_all()
    assert [line["reason"] for line in logs if line["event"] == "agent_not_forked"]


async def test_an_agent_that_has_no_room_for_its_environment_is_executed(
    sandbox: Sandbox, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_ROOM_BYTES", 0)
    with subreaper(), capture_logs() as logs:
        async with fork_server(STOPPABLE) as server:
            pods = LocalPods(tmp_path, spec_for, sandbox, fork_server=server)
            await pods.start(workspace)
            assert await wait_start(tmp_path, workspace)
            await pods.end(workspace, 0)
            processes.reap_all()
    reasons = [line["reason"] for line in logs if line["event"] == "agent_not_forked"]
    assert reasons == ["there is no room for its environment"]


async def test_a_fork_for_a_controller_that_has_ended_writes_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    reader, writer = os.pipe()
    own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    own.close()
    nobody = ForkRequest(pid=2**22 + 1, uid=None, command=[], environment={})
    with subreaper():
        async with fork_server("") as server:
            nobody.send(server.start(), [writer, other.fileno(), other.fileno()])
            other.close()
            os.close(writer)
            # The read returns once the fork has ended, because that closes the pipe.
            assert await asyncio.to_thread(os.read, reader, 1) == b""
    os.close(reader)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("is_gone", [False, True])
async def test_a_start_fails_if_the_sandbox_ends_before_there_is_an_agent(
    pods: LocalPods, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, is_gone: bool
) -> None:
    def read_late(info: IO[bytes]) -> int | None:
        pid = read(info)
        assert pid is not None
        eventually(lambda: not psutil.pid_exists(pid))
        return pid

    read = isolation._read_child_pid
    if is_gone:
        monkeypatch.setattr(isolation, "_read_child_pid", read_late)
    monkeypatch.setattr(isolation, "_WAIT", "exit 1")
    with pytest.raises(OSError, match="its sandbox could not be built"):
        await pods.start(workspace)


async def test_an_agent_that_was_forked_too_late_does_not_run(
    pods: LocalPods, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The controller has given up the fork and executed the agent instead: only one agent runs."""
    late: list[int] = []

    class GivesUp:
        @staticmethod
        def of(pid: int) -> None:
            late.append(pid)
            raise OSError("given up")

    with monkeypatch.context() as given_up:
        given_up.setattr(client, "ProcessId", GivesUp)
        await pods.start(workspace)
    assert await wait_start(tmp_path, workspace)
    assert not is_forked(tmp_path, workspace)
    (pid,) = late
    async with asyncio.timeout(20):
        await processes.wait_exit_and_reap(pid)
    assert "0." not in (tmp_path / "fleet" / workspace.id / "log").read_text()


async def test_nothing_of_an_agent_is_in_the_memory_of_the_fork_server(
    pods: LocalPods, server: ForkServer, workspace: Workspace, tmp_path: Path
) -> None:
    """Two agents also have different random numbers."""
    texts = []
    for each in (workspace, world.workspace(epoch=1, run_id=RUN_ID)):
        await pods.start(each)
        await eventually_async(lambda: "a secret" in pods.log_tail(each.id))
        texts.append(pods.log_tail(each.id).split()[-1])
        assert b"a secret" in memory(agent_of(tmp_path, each).pid)
        await pods.end(each, 0)
    assert texts[0] != texts[1]
    assert server.process is not None
    assert b"a secret" not in memory(server.process.pid)


def memory(pid: int) -> bytes:
    """The contents of the process's private writable memory, such as its heap and stack."""
    found = b""
    with Path("/proc", str(pid), "mem").open("rb", 0) as file:
        for line in Path("/proc", str(pid), "maps").read_text().splitlines():
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            if "rw-p" in line:
                file.seek(start)
                found += file.read(end - start)
    return found


async def test_the_fork_server_of_agents_has_one_thread_and_no_runtime_of_grpc() -> None:
    """A forked process has only the thread that called fork()."""
    command = [PYTHON, "-P", "-m", "evershell.agents.fork_server", "scripted"]
    server = ForkServer(command, {"PATH": os.environ["PATH"]})
    own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with own, other:
        nobody = ForkRequest(pid=2**22 + 1, uid=None, command=[], environment={})
        nobody.send(server.start(), [other.fileno()] * 3)
        other.close()
        # When the fork server answers, it has imported everything.
        assert b"No such file" in await asyncio.to_thread(own.recv, 1024)
    assert server.process is not None
    running = psutil.Process(server.process.pid)
    assert running.num_threads() == 1
    # Four descriptors are left: the three standard ones and the socket. The fork server may answer
    # before it has closed the descriptors of the request.
    await eventually_async(lambda: running.num_fds() == 4)
    server.close()
    await processes.wait_exit_and_reap(running.pid)
