"""Pods as processes of this machine, with a small program in the agent's place."""

import asyncio
import errno
import json
import os
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from server.core.runtime import AgentIdentity
from server.core.workspace import Workspace
from server.fleet import pod_files, processes
from server.fleet.local_pods import LocalPods
from server.fleet.processes import Pod
from tests.fleet.small_agent import given, spec_for


async def test_an_agent_is_given_its_secrets_on_standard_input_alone(
    pods: LocalPods, at: Workspace, tmp_path: Path
) -> None:
    await pods.start(at)
    told = await given(tmp_path, at)
    files = str(tmp_path / "pods" / at.id / "files")
    assert told["argv"] == ["-P", "-m", "server", "agent"]
    assert json.loads(str(told["stdin"])) == asdict(spec_for(AgentIdentity(at.id, 3)))
    environment = told["environment"]
    assert isinstance(environment, dict)
    assert set(environment) <= {
        "PATH",
        "LANG",
        "EVERSHELL_WORKSPACE_ID",
        "EVERSHELL_EPOCH",
        "EVERSHELL_STATE_DIR",
        "LC_CTYPE",
    }
    assert told["cwd"] == files
    assert "secret" not in str(environment)


async def test_what_is_on_disk_is_enough_for_another_controller(
    pods: LocalPods, at: Workspace, tmp_path: Path
) -> None:
    assert not pods.was_started(at) and not pods.is_alive(at)
    await pods.start(at)
    other = LocalPods(tmp_path, spec_for)
    assert other.was_started(at) and other.is_alive(at)
    pid = int((tmp_path / "pods" / at.id / "pid").read_text())
    assert [process.pid for process in processes.find(Pod(at.id))] == [pid]
    # Epochs repeat with another database under the same folder, or with a restored one.
    assert not other.was_started(replace(at, run_id="run_2"))
    for epoch in (2, 4):
        assert not other.was_started(replace(at, epoch=epoch)) and not other.is_alive(
            replace(at, epoch=epoch)
        )


async def test_the_end_of_a_pod_is_seen_and_its_files_stay(
    pods: LocalPods, at: Workspace, tmp_path: Path
) -> None:
    await pods.start(at)
    await given(tmp_path, at)
    waiting = asyncio.create_task(pods.wait_exit(at))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert await pods.end(at, 5) is True
    await asyncio.wait_for(waiting, 10)
    assert not pods.is_alive(at) and pods.was_started(at)
    assert not (tmp_path / "pods" / at.id / "pid").exists()
    assert (tmp_path / "pods" / at.id / "files" / "given.json").exists()


async def test_a_controller_that_was_held_up_leaves_a_later_pod_alone(
    pods: LocalPods, at: Workspace, tmp_path: Path
) -> None:
    later = replace(at, epoch=at.epoch + 1)
    await pods.start(later)
    await given(tmp_path, later)
    await pods.end(at, 0)
    assert pods.is_alive(later)
    assert await pods.end(later, 0) is True
    assert not pods.is_alive(later)


async def test_a_pod_that_is_not_there_has_ended(pods: LocalPods, at: Workspace) -> None:
    await asyncio.wait_for(pods.wait_exit(at), 10)
    assert await pods.end(at, 5) is True
    assert pods.log_tail(at.id) == ""


@pytest.mark.parametrize("ours", [True, False])
async def test_what_a_dead_agent_left_is_known_to_the_controller_that_started_it(
    pods: LocalPods, at: Workspace, tmp_path: Path, ours: bool
) -> None:
    await pods.start(at)
    await given(tmp_path, at)
    (process,) = processes.find(Pod(at.id))
    process.kill()
    await asyncio.wait_for(pods.wait_exit(at), 10)
    controller = pods if ours else LocalPods(tmp_path, spec_for)
    assert await controller.end(at, 0) is ours


async def test_an_agent_that_lives_is_ended_with_all_it_has_by_any_controller(
    pods: LocalPods, at: Workspace, tmp_path: Path
) -> None:
    await pods.start(at)
    await given(tmp_path, at)
    assert await LocalPods(tmp_path, spec_for).end(at, 0) is True


async def test_a_dead_agent_is_not_alive_though_nobody_has_waited_for_it(
    pods: LocalPods, at: Workspace, tmp_path: Path
) -> None:
    await pods.start(at)
    await given(tmp_path, at)
    (process,) = processes.find(Pod(at.id))
    process.kill()
    await asyncio.wait_for(pods.wait_exit(at), 10)
    assert not pods.is_alive(at)


async def test_the_end_of_a_pod_is_noted_on_a_full_disk(
    pods: LocalPods, at: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pods.start(at)
    await given(tmp_path, at)

    def write(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pod_files, "write", write)
    assert await pods.end(at, 0) is True
    assert await LocalPods(tmp_path, spec_for).end(at, 0) is True
    with pytest.raises(OSError, match="No space left"):
        await pods.start(at)


@pytest.mark.parametrize("what", ["files", "."])
async def test_a_pod_whose_folder_was_deleted_is_not_alive_and_still_ends(
    pods: LocalPods, at: Workspace, tmp_path: Path, what: str
) -> None:
    await pods.start(at)
    await given(tmp_path, at)
    assert pods.has_files(at.id)
    shutil.rmtree(tmp_path / "pods" / at.id / what)
    assert not pods.has_files(at.id) and not pods.is_alive(at)
    assert await pods.end(at, 5) is True
    assert processes.find(Pod(at.id)) == []
    await pods.start(at)
    assert pods.is_alive(at)


async def test_the_last_line_of_the_log_are_the_last_words(
    pods: LocalPods, at: Workspace, tmp_path: Path
) -> None:
    await pods.start(at)
    async with asyncio.timeout(10):
        while pods.log_tail(at.id) != "last words":
            await asyncio.sleep(0.005)


async def test_a_program_that_cannot_be_started_is_an_error_of_the_system(
    pods: LocalPods, at: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    with pytest.raises(OSError, match="missing"):
        await pods.start(at)
    assert not pods.is_alive(at)


async def test_a_pod_that_was_just_started_is_alive_and_can_be_ended(
    pods: LocalPods, at: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is just being started shows no environment for a moment: it must not be taken
    for another's.
    """
    await pods.start(at)
    with monkeypatch.context() as loading:
        loading.setattr(psutil.Process, "environ", lambda process: {})
        assert pods.is_alive(at)
        assert await pods.end(at, grace_seconds=0) is True
        assert not pods.is_alive(at)
    assert processes.find(Pod(at.id)) == []
