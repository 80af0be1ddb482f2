"""What every Pods does: with processes of this machine, and in the fakes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from server.core.workspace import Workspace
from tests.contracts.pods import FakeCase, InvariantsCase, LocalCase, PodsCase
from tests.support import world
from tests.support.fleet import RUN_ID
from tests.support.waiting import settle

LIMIT_SECONDS = 10.0

_CASES: dict[str, Callable[[Path], AbstractAsyncContextManager[PodsCase]]] = {
    "fake": FakeCase.open,
    "invariants": InvariantsCase.open,
    "local": LocalCase.open,
}
# Agents of tests/invariants always start, and have no files.
with_files = pytest.mark.parametrize("at", ["fake", "local"], indirect=True)


@pytest.fixture(params=_CASES)
async def at(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[PodsCase]:
    """Every implementation in turn."""
    async with _CASES[request.param](tmp_path) as case:
        yield case


@pytest.fixture
def workspace() -> Workspace:
    return world.workspace(epoch=3, run_id=RUN_ID)


async def exited(at: PodsCase, workspace: Workspace) -> None:
    await asyncio.wait_for(at.pods.wait_exit(workspace), LIMIT_SECONDS)


async def test_a_pod_that_was_never_started(at: PodsCase, workspace: Workspace) -> None:
    assert not at.pods.was_started(workspace)
    assert not at.pods.is_alive(workspace)
    assert not at.pods.has_files(workspace.id)
    assert at.pods.log_tail(workspace.id) == ""
    await exited(at, workspace)
    assert await at.pods.end(workspace, 5) is True
    assert not at.pods.was_started(workspace)


async def test_a_pod_that_runs(at: PodsCase, workspace: Workspace) -> None:
    await at.start(workspace)
    for pods in (at.pods, at.other_controller()):
        assert pods.was_started(workspace)
        assert pods.is_alive(workspace)
        assert pods.has_files(workspace.id)
        for other in (
            replace(workspace, epoch=workspace.epoch - 1),
            replace(workspace, epoch=workspace.epoch + 1),
            world.workspace(epoch=workspace.epoch, run_id=RUN_ID),
        ):
            assert not pods.was_started(other)
            assert not pods.is_alive(other)
    assert at.runs(workspace.id)


async def test_a_pod_of_another_run_was_not_started(at: PodsCase, workspace: Workspace) -> None:
    """Another database, or a restored one, may count the same epochs again."""
    await at.start(workspace)
    assert not at.other_controller().was_started(replace(workspace, run_id="run_2"))


async def test_the_end_of_an_agent_ends_the_wait_for_it(at: PodsCase, workspace: Workspace) -> None:
    await at.start(workspace)
    waits = [
        asyncio.create_task(pods.wait_exit(workspace))
        for pods in (at.pods, at.pods, at.other_controller())
    ]
    await settle()
    assert not any(wait.done() for wait in waits)
    await at.kill(workspace)
    await asyncio.wait_for(asyncio.gather(*waits), LIMIT_SECONDS)
    assert not at.pods.is_alive(workspace)
    assert at.pods.was_started(workspace)
    await exited(at, workspace)


async def test_a_frozen_agent_is_alive(at: PodsCase, workspace: Workspace) -> None:
    await at.start(workspace)
    at.freeze(workspace)
    assert at.pods.is_alive(workspace)


async def test_the_log_ends_with_the_last_line(at: PodsCase, workspace: Workspace) -> None:
    await at.start(workspace)
    assert at.pods.log_tail(workspace.id) == at.last_line
    await at.kill(workspace)
    assert at.other_controller().log_tail(workspace.id) == at.last_line


@with_files
async def test_a_pod_that_cannot_be_started(at: FakeCase | LocalCase, workspace: Workspace) -> None:
    with at.failing_starts(), pytest.raises(OSError, match="missing"):
        await at.pods.start(workspace)
    assert not at.pods.is_alive(workspace)
    # So that the workspace fails, and the controller does not try again without end.
    assert at.pods.was_started(workspace)
    assert await at.pods.end(workspace, 0) is True
    await at.start(workspace)
    assert at.pods.is_alive(workspace)


@with_files
async def test_a_pod_whose_files_were_removed_is_not_alive_and_still_ends(
    at: FakeCase | LocalCase, workspace: Workspace
) -> None:
    await at.start(workspace)
    at.remove_files(workspace)
    assert not at.pods.has_files(workspace.id)
    assert not at.pods.is_alive(workspace)
    assert at.pods.was_started(workspace)
    assert await at.pods.end(workspace, 5) is True
    assert not at.runs(workspace.id)


@pytest.mark.parametrize("grace_seconds", [0, 5])
async def test_an_end_ends_all_that_runs(
    at: PodsCase, workspace: Workspace, grace_seconds: float
) -> None:
    await at.start(workspace)
    waiting = asyncio.create_task(exited(at, workspace))
    await settle()
    assert await at.pods.end(workspace, grace_seconds) is True
    await waiting
    assert not at.runs(workspace.id)
    assert at.was_asked_to_end(workspace) is (grace_seconds > 0)
    assert not at.pods.is_alive(workspace)
    # What belongs to the workspace stays.
    assert at.pods.was_started(workspace)
    assert at.pods.has_files(workspace.id)


async def test_an_agent_that_does_not_end_within_the_grace_is_killed(
    at: PodsCase, workspace: Workspace
) -> None:
    await at.start(workspace)
    at.freeze(workspace)
    assert await at.pods.end(workspace, 0.1) is True
    assert not at.runs(workspace.id)
    assert not at.pods.is_alive(workspace)


async def test_an_end_ends_the_tools_of_an_agent_that_died(
    at: PodsCase, workspace: Workspace
) -> None:
    await at.start(workspace)
    await at.kill(workspace)
    assert await at.pods.end(workspace, 0) is True
    assert not at.runs(workspace.id)


async def test_an_end_may_be_repeated_by_any_controller(at: PodsCase, workspace: Workspace) -> None:
    await at.start(workspace)
    ends = [at.pods.end(workspace, 0), at.pods.end(workspace, 0)]
    assert await asyncio.gather(*ends) == [True, True]
    for pods in (at.pods, at.other_controller()):
        assert await pods.end(workspace, 5) is True
    assert not at.runs(workspace.id)


async def test_any_controller_ends_an_agent_that_lives(at: PodsCase, workspace: Workspace) -> None:
    await at.start(workspace)
    assert await at.other_controller().end(workspace, 0) is True
    assert not at.runs(workspace.id)
    assert not at.pods.is_alive(workspace)


async def test_an_end_says_if_it_cannot_know_that_all_has_ended(
    at: PodsCase, workspace: Workspace
) -> None:
    await at.start(workspace)
    pods = await at.lose_track(workspace)
    assert await pods.end(workspace, 0) is False


async def test_an_end_leaves_later_pods_and_other_workspaces_alone(
    at: PodsCase, workspace: Workspace
) -> None:
    later = replace(workspace, epoch=workspace.epoch + 1)
    other = world.workspace(epoch=workspace.epoch - 1, run_id=RUN_ID)
    await at.start(later)
    await at.start(other)
    # What this pod left may be unknown by now, so the answer does not matter here.
    await at.pods.end(workspace, 0)
    assert at.pods.is_alive(later)
    assert at.pods.is_alive(other)
    assert await at.pods.end(later, 0) is True
    assert at.pods.is_alive(other)
    assert await at.pods.end(other, 0) is True


async def test_an_end_ends_earlier_pods_too(at: PodsCase, workspace: Workspace) -> None:
    earlier = replace(workspace, epoch=workspace.epoch - 1)
    await at.start(earlier)
    await at.pods.end(workspace, 0)
    assert not at.runs(workspace.id)
    assert not at.pods.is_alive(earlier)
    assert await at.pods.end(workspace, 0) is True


async def test_the_next_pod_starts_after_the_end_of_the_last(
    at: PodsCase, workspace: Workspace
) -> None:
    await at.start(workspace)
    await at.pods.end(workspace, 0)
    following = replace(workspace, epoch=workspace.epoch + 1)
    await at.start(following)
    assert at.pods.was_started(following)
    assert at.pods.is_alive(following)
    assert not at.pods.is_alive(workspace)
    assert at.runs(workspace.id)
