"""Real processes of a pod: found by their marker, and ended whatever they do about it."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.core.ids import new_workspace_id
from server.fleet import processes
from server.fleet.processes import AllPods, Pod
from server.pod.process import STATE_DIR_MARKER, WORKSPACE_MARKER

# Says when it is ready, then waits; `{prelude}` is what it does before.
WAIT = "import os, signal, subprocess, sys, time\n{prelude}\nprint(os.getpid(), flush=True)\ntime.sleep(60)"
DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
CHILD_IN_A_SESSION_OF_ITS_OWN = (
    "child = subprocess.Popen([sys.executable, '-c', 'import time; print(1, flush=True); time.sleep(60)'],"
    " start_new_session=True, stdout=subprocess.PIPE)\nchild.stdout.readline()"
)
Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def workspace_id() -> str:
    return new_workspace_id()


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def begin(
        workspace_id: str, prelude: str = "", state_dir: Path = Path("/nowhere")
    ) -> "subprocess.Popen[bytes]":
        environment = {
            **os.environ,
            WORKSPACE_MARKER: workspace_id,
            STATE_DIR_MARKER: str(state_dir),
        }
        command = [sys.executable, "-c", WAIT.format(prelude=prelude)]
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, start_new_session=True
        )
        started.append(process)
        assert process.stdout is not None and process.stdout.readline()
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()


def pids(workspace_id: str) -> set[int]:
    return {process.pid for process in processes.find(Pod(workspace_id))}


async def test_only_the_pods_own_processes_are_found(start: Start, workspace_id: str) -> None:
    mine, other = start(workspace_id), start(new_workspace_id())
    assert pids(workspace_id) == {mine.pid}
    assert await processes.end_all(Pod(workspace_id), grace_seconds=5) is True
    assert pids(workspace_id) == set()
    assert other.poll() is None


async def test_all_pods_of_a_stack_end_together(start: Start, tmp_path: Path) -> None:
    own = [start(new_workspace_id(), DEAF, state_dir=tmp_path) for _ in range(3)]
    other = start(new_workspace_id(), state_dir=tmp_path / "other")
    assert await processes.end_all(AllPods(tmp_path), grace_seconds=0.3) is True
    assert processes.find(AllPods(tmp_path)) == []
    assert all(process.wait(10) in (0, -signal.SIGKILL) for process in own)
    assert other.poll() is None


async def test_a_tool_is_not_asked_when_its_agent_is(
    start: Start, workspace_id: str, tmp_path: Path
) -> None:
    """Else the agent could take it for the tool's own end."""
    asked = tmp_path / "asked"
    line = f"trap 'touch {asked}' TERM; echo; while :; do sleep 0.01; done"
    start(
        workspace_id,
        f"tool = subprocess.Popen(['sh', '-c', {line!r}], stdout=subprocess.PIPE)\ntool.stdout.readline()",
    )
    assert await processes.end_all(Pod(workspace_id), grace_seconds=0.3) is True
    assert not asked.exists()


async def test_a_pod_without_processes_has_ended(workspace_id: str) -> None:
    assert await processes.end_all(Pod(workspace_id), grace_seconds=5) is True


async def test_what_ends_when_asked_is_not_killed(start: Start, workspace_id: str) -> None:
    process = start(workspace_id, "signal.signal(signal.SIGTERM, lambda *_: os._exit(7))")
    began = time.monotonic()
    assert await processes.end_all(Pod(workspace_id), grace_seconds=30) is True
    assert time.monotonic() - began < 10
    with_status = process.wait(10)
    # It was waited for by the one who ended it, or is now.
    assert with_status in (0, 7)


async def test_what_does_not_hear_is_killed_after_the_grace(
    start: Start, workspace_id: str
) -> None:
    process = start(workspace_id, DEAF)
    began = time.monotonic()
    assert await processes.end_all(Pod(workspace_id), grace_seconds=0.2) is True
    assert 0.2 <= time.monotonic() - began < 5
    assert pids(workspace_id) == set()
    assert process.wait(10) in (0, -signal.SIGKILL)


async def test_without_a_grace_it_is_killed_at_once(start: Start, workspace_id: str) -> None:
    start(workspace_id, DEAF)
    assert await processes.end_all(Pod(workspace_id), grace_seconds=0) is True
    assert pids(workspace_id) == set()


async def test_a_descendant_in_a_session_of_its_own_ends_too(
    start: Start, workspace_id: str
) -> None:
    parent = start(workspace_id, CHILD_IN_A_SESSION_OF_ITS_OWN)
    assert len(pids(workspace_id)) == 2
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait(10)
    assert len(pids(workspace_id)) == 1
    assert await processes.end_all(Pod(workspace_id), grace_seconds=5) is True
    assert pids(workspace_id) == set()


async def test_a_descendant_that_has_cleared_its_environment_ends_too(
    start: Start, workspace_id: str
) -> None:
    start(
        workspace_id,
        CHILD_IN_A_SESSION_OF_ITS_OWN.replace("start_new_session", "env={}, start_new_session"),
    )
    assert len(pids(workspace_id)) == 2
    everything = processes.find(Pod(workspace_id))
    assert await processes.end_all(Pod(workspace_id), grace_seconds=0) is True
    assert not any(process.is_running() and process.status() != "zombie" for process in everything)


async def test_what_is_started_while_ending_is_ended_too(start: Start, workspace_id: str) -> None:
    again = f"def again(*_):\n {CHILD_IN_A_SESSION_OF_ITS_OWN.replace(chr(10), chr(10) + ' ')}\n os._exit(0)\n"
    start(workspace_id, again + "signal.signal(signal.SIGTERM, again)")
    assert await processes.end_all(Pod(workspace_id), grace_seconds=10) is True
    assert pids(workspace_id) == set()


async def test_surviving_processes_are_reported(
    start: Start, workspace_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(workspace_id, DEAF)
    monkeypatch.setattr(processes, "_signal", lambda *_: None)
    monkeypatch.setattr(processes, "_wait_exits", lambda *_: asyncio.sleep(0))
    assert await processes.end_all(Pod(workspace_id), grace_seconds=0) is False


async def test_the_end_of_a_process_is_seen_by_everyone_who_waits(
    start: Start, workspace_id: str
) -> None:
    process = start(workspace_id)
    waiting = [asyncio.create_task(processes.wait_exit_and_reap(process.pid)) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    process.kill()
    await asyncio.wait_for(asyncio.gather(*waiting), 10)


async def test_a_process_that_never_was_is_gone() -> None:
    await asyncio.wait_for(processes.wait_exit_and_reap(2**22 - 1), 10)


async def test_scans_that_are_wanted_at_the_same_time_are_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the event loop goes on: the first scan waits for it."""
    scans, may_end, began = processes.Scans(), threading.Event(), threading.Semaphore(0)
    scanned: list[int] = []

    def scan() -> list[processes.ScannedProcess]:
        number = len(scanned)
        scanned.append(number)
        began.release()
        assert may_end.wait(10)
        return []

    monkeypatch.setattr(processes, "scan", scan)
    first = asyncio.create_task(scans())
    while not began.acquire(blocking=False):
        await asyncio.sleep(0.001)
    # Asked after the first scan began, so the result of that one may be too old for them.
    later = [asyncio.create_task(scans()) for _ in range(20)]
    await asyncio.sleep(0)
    later[0].cancel()
    may_end.set()
    await asyncio.gather(first, *later[1:])
    assert scanned == [0, 1]
