"""Pods as processes of this machine, with a small program in the agent's place."""

import asyncio
import json
import shutil
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from server.core.runtime import AgentIdentity
from server.core.workspace import Workspace
from server.fleet import processes
from server.fleet.local_pods import LocalPods, PodSpec
from server.fleet.processes import Pod
from tests.core.world import workspace

# Writes down what it was given, says so, and waits.
AGENT = f"""#!{sys.executable} -S
import json, os, sys, time
given = dict(argv=sys.argv[1:], stdin=sys.stdin.read(), environment=dict(os.environ), cwd=os.getcwd())
open("given.tmp", "w").write(json.dumps(given))
os.rename("given.tmp", "given.json")
print("first line", flush=True)
print("last words", file=sys.stderr, flush=True)
time.sleep(60)
"""


def spec_for(agent: AgentIdentity, files_dir: str) -> PodSpec:
    return PodSpec(
        workspace_id=agent.workspace_id,
        epoch=agent.epoch,
        runtime_addresses=["127.0.0.1:1"],
        runtime_token="a secret token",
        control_plane_public_key="{}",
        files_dir=files_dir,
        model="scripted",
        model_timeout_seconds=1,
        tool_timeout_seconds=1,
        openai_base_url="",
        openai_api_key="",
    )


@pytest.fixture
def at() -> Workspace:
    return workspace(epoch=3)


@pytest.fixture
async def pods(tmp_path: Path, at: Workspace, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LocalPods]:
    program = tmp_path / "agent"
    program.write_text(AGENT)
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    yield LocalPods(tmp_path / "pods", spec_for)
    await processes.end_all(Pod(at.id), grace_seconds=0)


async def given(tmp_path: Path, at: Workspace) -> dict[str, object]:
    """What the program says that it was given."""
    told = tmp_path / "pods" / at.id / "files" / "given.json"
    async with asyncio.timeout(10):
        while not told.exists():
            await asyncio.sleep(0.005)
    found: dict[str, object] = json.loads(told.read_text())
    return found


async def test_an_agent_is_given_its_secrets_on_standard_input_alone(pods: LocalPods, at: Workspace, tmp_path: Path) -> None:
    await pods.start(at)
    told = await given(tmp_path, at)
    files = str(tmp_path / "pods" / at.id / "files")
    assert told["argv"] == ["-P", "-m", "server", "agent"]
    assert json.loads(str(told["stdin"])) == asdict(spec_for(AgentIdentity(at.id, 3), files))
    environment = told["environment"]
    assert isinstance(environment, dict)
    assert set(environment) <= {"PATH", "LANG", "EVERSHELL_WORKSPACE_ID", "EVERSHELL_EPOCH", "LC_CTYPE"}
    assert told["cwd"] == files
    assert "secret" not in str(environment)


async def test_what_is_on_disk_is_enough_for_another_controller(pods: LocalPods, at: Workspace, tmp_path: Path) -> None:
    assert not pods.was_started(at) and not pods.is_alive(at)
    await pods.start(at)
    other = LocalPods(tmp_path / "pods", spec_for)
    assert other.was_started(at) and other.is_alive(at)
    pid = int((tmp_path / "pods" / at.id / "pid").read_text())
    assert [process.pid for process in processes.find(Pod(at.id))] == [pid]
    for epoch in (2, 4):
        assert not other.was_started(replace(at, epoch=epoch)) and not other.is_alive(replace(at, epoch=epoch))


async def test_the_end_of_a_pod_is_seen_and_its_files_stay(pods: LocalPods, at: Workspace, tmp_path: Path) -> None:
    await pods.start(at)
    await given(tmp_path, at)
    waiting = asyncio.create_task(pods.ended(at))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert await pods.end(at, 5) is True
    await asyncio.wait_for(waiting, 10)
    assert not pods.is_alive(at) and pods.was_started(at)
    assert not (tmp_path / "pods" / at.id / "pid").exists()
    assert (tmp_path / "pods" / at.id / "files" / "given.json").exists()


async def test_a_controller_that_was_held_up_leaves_a_later_pod_alone(pods: LocalPods, at: Workspace, tmp_path: Path) -> None:
    later = replace(at, epoch=at.epoch + 1)
    await pods.start(later)
    await given(tmp_path, later)
    await pods.end(at, 0)
    assert pods.is_alive(later)
    assert await pods.end(later, 0) is True
    assert not pods.is_alive(later)


async def test_a_pod_that_is_not_there_has_ended(pods: LocalPods, at: Workspace) -> None:
    await asyncio.wait_for(pods.ended(at), 10)
    assert await pods.end(at, 5) is True
    assert pods.last_words(at.id) == ""


@pytest.mark.parametrize("ours", [True, False])
async def test_what_a_dead_agent_left_is_known_to_the_controller_that_started_it(
    pods: LocalPods, at: Workspace, tmp_path: Path, ours: bool
) -> None:
    await pods.start(at)
    await given(tmp_path, at)
    (process,) = processes.find(Pod(at.id))
    process.kill()
    await asyncio.wait_for(pods.ended(at), 10)
    controller = pods if ours else LocalPods(tmp_path / "pods", spec_for)
    assert await controller.end(at, 0) is ours


async def test_an_agent_that_lives_is_ended_with_all_it_has_by_any_controller(
    pods: LocalPods, at: Workspace, tmp_path: Path
) -> None:
    await pods.start(at)
    await given(tmp_path, at)
    assert await LocalPods(tmp_path / "pods", spec_for).end(at, 0) is True


async def test_a_dead_agent_is_not_alive_though_nobody_has_waited_for_it(pods: LocalPods, at: Workspace, tmp_path: Path) -> None:
    await pods.start(at)
    await given(tmp_path, at)
    (process,) = processes.find(Pod(at.id))
    process.kill()
    await asyncio.wait_for(pods.ended(at), 10)
    assert not pods.is_alive(at)


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


async def test_a_number_that_was_given_to_another_process_is_not_the_agents(pods: LocalPods, at: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "pods" / at.id
    folder.mkdir(parents=True)
    for text in ("1", "nonsense", "", "99999999"):
        (folder / "pid").write_text(text)
        assert not pods.is_alive(at)


async def test_the_last_line_of_the_log_are_the_last_words(pods: LocalPods, at: Workspace, tmp_path: Path) -> None:
    await pods.start(at)
    async with asyncio.timeout(10):
        while pods.last_words(at.id) != "last words":
            await asyncio.sleep(0.005)


async def test_a_program_that_cannot_be_started_is_an_error_of_the_system(
    pods: LocalPods, at: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    with pytest.raises(OSError, match="missing"):
        await pods.start(at)
    assert not pods.is_alive(at)


async def test_a_pod_is_alive_from_the_moment_it_was_started(
    pods: LocalPods, at: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is just being started shows no environment for a moment: it must not be taken for another's."""
    await pods.start(at)
    with monkeypatch.context() as loading:
        loading.setattr(psutil.Process, "environ", lambda process: {})
        assert pods.is_alive(at)
    await pods.end(at, grace_seconds=0)
