"""Finds the processes of a pod by their marker, and ends them, on real processes."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from evershell.core.ids import new_workspace_id
from evershell.fleet.local import processes, scans
from evershell.fleet.local.processes import AllPods, Pod
from evershell.pod.process import STATE_DIR_MARKER, WORKSPACE_MARKER

# Runs `{prelude}`, prints a line, and waits.
WAIT = """
import os, signal, subprocess, sys, time
{prelude}
print(os.getpid(), flush=True)
time.sleep(60)
"""
IGNORE_SIGTERM = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
START_CHILD = (
    "child = subprocess.Popen("
    "[sys.executable, '-c', 'import time; print(1, flush=True); time.sleep(60)'],"
    " start_new_session=True, stdout=subprocess.PIPE)\n"
    "child.stdout.readline()"
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


async def test_only_the_processes_of_the_pod_are_found(start: Start, workspace_id: str) -> None:
    mine, other = start(workspace_id), start(new_workspace_id())
    assert pids(workspace_id) == {mine.pid}
    assert await processes.end_all(Pod(workspace_id), grace_seconds=5) is True
    assert pids(workspace_id) == set()
    assert other.poll() is None


async def test_all_pods_of_a_stack_end_together(start: Start, tmp_path: Path) -> None:
    own = [start(new_workspace_id(), IGNORE_SIGTERM, state_dir=tmp_path) for _ in range(3)]
    other = start(new_workspace_id(), state_dir=tmp_path / "other")
    assert await processes.end_all(AllPods(tmp_path), grace_seconds=0.3) is True
    assert processes.find(AllPods(tmp_path)) == []
    assert all(process.wait(10) in (0, -signal.SIGKILL) for process in own)
    assert other.poll() is None


async def test_a_tool_does_not_receive_the_signal_that_asks_its_agent_to_end(
    start: Start, workspace_id: str, tmp_path: Path
) -> None:
    """Otherwise the agent could report that the tool ended on its own."""
    asked = tmp_path / "asked"
    line = f"trap 'touch {asked}' TERM; echo; while :; do sleep 0.01; done"
    start(
        workspace_id,
        f"tool = subprocess.Popen(['sh', '-c', {line!r}], stdout=subprocess.PIPE)\n"
        "tool.stdout.readline()",
    )
    assert await processes.end_all(Pod(workspace_id), grace_seconds=0.3) is True
    assert not asked.exists()


async def test_a_pod_without_processes_has_ended(workspace_id: str) -> None:
    assert await processes.end_all(Pod(workspace_id), grace_seconds=5) is True


async def test_a_process_that_ends_on_sigterm_is_not_killed(
    start: Start, workspace_id: str
) -> None:
    process = start(workspace_id, "signal.signal(signal.SIGTERM, lambda *_: os._exit(7))")
    began = time.monotonic()
    assert await processes.end_all(Pod(workspace_id), grace_seconds=30) is True
    assert time.monotonic() - began < 10
    # 0 if `end_all` has reaped it.
    assert process.wait(10) in (0, 7)


async def test_a_process_that_ignores_sigterm_is_killed_after_the_grace(
    start: Start, workspace_id: str
) -> None:
    process = start(workspace_id, IGNORE_SIGTERM)
    began = time.monotonic()
    assert await processes.end_all(Pod(workspace_id), grace_seconds=0.2) is True
    assert 0.2 <= time.monotonic() - began < 5
    assert pids(workspace_id) == set()
    assert process.wait(10) in (0, -signal.SIGKILL)


async def test_without_a_grace_a_process_is_killed_at_once(start: Start, workspace_id: str) -> None:
    start(workspace_id, IGNORE_SIGTERM)
    assert await processes.end_all(Pod(workspace_id), grace_seconds=0) is True
    assert pids(workspace_id) == set()


async def test_a_descendant_in_its_own_session_is_ended(start: Start, workspace_id: str) -> None:
    parent = start(workspace_id, START_CHILD)
    assert len(pids(workspace_id)) == 2
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait(10)
    assert len(pids(workspace_id)) == 1
    assert await processes.end_all(Pod(workspace_id), grace_seconds=5) is True
    assert pids(workspace_id) == set()


async def test_a_descendant_without_the_marker_is_ended(start: Start, workspace_id: str) -> None:
    start(
        workspace_id,
        START_CHILD.replace("start_new_session", "env={}, start_new_session"),
    )
    assert len(pids(workspace_id)) == 2
    found = processes.find(Pod(workspace_id))
    assert await processes.end_all(Pod(workspace_id), grace_seconds=0) is True
    assert not any(process.is_running() and process.status() != "zombie" for process in found)


async def test_a_process_that_is_started_during_the_end_is_ended(
    start: Start, workspace_id: str
) -> None:
    body = textwrap.indent(f"{START_CHILD}\nos._exit(0)\n", " ")
    start(workspace_id, f"def again(*_):\n{body}signal.signal(signal.SIGTERM, again)")
    assert await processes.end_all(Pod(workspace_id), grace_seconds=10) is True
    assert pids(workspace_id) == set()


def test_a_scan_reads_the_identity_the_parent_and_the_markers(
    start: Start, workspace_id: str, tmp_path: Path
) -> None:
    process = start(workspace_id, "open('/proc/self/comm', 'w').write('a) R 1 (b')", tmp_path)
    (found,) = [each for each in scans.scan() if each.id.pid == process.pid]
    assert found.id.is_running()
    assert found.parent_pid == os.getpid()
    assert found.markers == {WORKSPACE_MARKER: workspace_id, STATE_DIR_MARKER: str(tmp_path)}


def test_a_process_that_has_reused_the_id_of_a_found_one_is_spared(
    start: Start, workspace_id: str
) -> None:
    process = start(workspace_id)
    (found,) = [each for each in scans.scan() if each.id.pid == process.pid]
    earlier = replace(found, id=replace(found.id, started_at=found.id.started_at - 1))
    assert processes.find(Pod(workspace_id), [earlier]) == []
    assert [each.pid for each in processes.find(Pod(workspace_id), [found])] == [process.pid]


async def test_surviving_processes_are_reported(
    start: Start, workspace_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(workspace_id, IGNORE_SIGTERM)
    monkeypatch.setattr(processes, "_signal", lambda *_: None)
    monkeypatch.setattr(processes, "_wait_exits", lambda *_: asyncio.sleep(0))
    assert await processes.end_all(Pod(workspace_id), grace_seconds=0) is False


async def test_the_exit_of_a_process_ends_every_wait_for_it(
    start: Start, workspace_id: str
) -> None:
    process = start(workspace_id)
    waiting = [asyncio.create_task(processes.wait_exit_and_reap(process.pid)) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    process.kill()
    await asyncio.wait_for(asyncio.gather(*waiting), 10)


async def test_the_wait_for_a_process_that_does_not_exist_ends_at_once() -> None:
    await asyncio.wait_for(processes.wait_exit_and_reap(2**22 - 1), 10)


async def test_concurrent_requests_share_a_scan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The event loop is not blocked: the first scan ends only after the loop has continued."""
    shared, may_end, began = scans.Scans(), threading.Event(), threading.Semaphore(0)
    scanned: list[int] = []

    def scan() -> list[scans.ScannedProcess]:
        number = len(scanned)
        scanned.append(number)
        began.release()
        assert may_end.wait(10)
        return []

    monkeypatch.setattr(scans, "scan", scan)
    first = asyncio.create_task(shared())
    while not began.acquire(blocking=False):
        await asyncio.sleep(0.001)
    # These began after the first scan, whose result may be too old for them.
    later = [asyncio.create_task(shared()) for _ in range(20)]
    await asyncio.sleep(0)
    later[0].cancel()
    may_end.set()
    await asyncio.gather(first, *later[1:])
    assert scanned == [0, 1]
