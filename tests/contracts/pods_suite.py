"""The contract of Pods. A module that imports these tests defines the fixture `case`."""

import asyncio
from dataclasses import replace

import pytest

from evershell.core.workspace import Workspace
from tests.contracts.pods import PodsCase
from tests.support import world
from tests.support.fleet import RUN_ID
from tests.support.waiting import settle

LIMIT_SECONDS = 10.0


@pytest.fixture
def workspace() -> Workspace:
    return world.workspace(epoch=3, run_id=RUN_ID)


async def wait_exit(case: PodsCase, workspace: Workspace) -> None:
    await asyncio.wait_for(case.pods.wait_exit(workspace), LIMIT_SECONDS)


async def test_a_pod_that_was_never_started_is_not_alive_and_has_ended(
    case: PodsCase, workspace: Workspace
) -> None:
    assert not case.pods.was_started(workspace)
    assert not case.pods.is_alive(workspace)
    assert not case.pods.has_files(workspace.id)
    assert case.pods.log_tail(workspace.id) == ""
    await wait_exit(case, workspace)
    assert await case.pods.end(workspace, 5) is True
    assert not case.pods.was_started(workspace)


async def test_a_started_pod_is_alive_for_every_controller(
    case: PodsCase, workspace: Workspace
) -> None:
    await case.start(workspace)
    for pods in (case.pods, await case.other_controller()):
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
    assert case.runs(workspace.id)


async def test_a_workspace_whose_pod_was_started_may_have_processes(
    case: PodsCase, workspace: Workspace
) -> None:
    await case.start(workspace)
    for pods in (case.pods, await case.other_controller()):
        assert not pods.has_never_run(workspace.id)
    await case.pods.end(workspace, 0)
    assert not case.pods.has_never_run(workspace.id)


async def test_a_pod_of_another_run_was_not_started(case: PodsCase, workspace: Workspace) -> None:
    """A new or restored database may reuse the epochs of an earlier run."""
    await case.start(workspace)
    other = await case.other_controller()
    assert not other.was_started(replace(workspace, run_id="run_2"))


async def test_the_exit_of_an_agent_ends_every_wait_for_it(
    case: PodsCase, workspace: Workspace
) -> None:
    await case.start(workspace)
    waits = [
        asyncio.create_task(pods.wait_exit(workspace))
        for pods in (case.pods, case.pods, await case.other_controller())
    ]
    await settle()
    assert not any(wait.done() for wait in waits)
    await case.kill(workspace)
    await asyncio.wait_for(asyncio.gather(*waits), LIMIT_SECONDS)
    assert not case.pods.is_alive(workspace)
    assert case.pods.was_started(workspace)
    await wait_exit(case, workspace)


async def test_a_frozen_agent_is_alive(case: PodsCase, workspace: Workspace) -> None:
    await case.start(workspace)
    case.freeze(workspace)
    assert case.pods.is_alive(workspace)


async def test_the_log_tail_is_the_last_line_of_the_agent(
    case: PodsCase, workspace: Workspace
) -> None:
    await case.start(workspace)
    # Some backends can read the last line only after the agent has ended.
    assert case.pods.log_tail(workspace.id) in ("", case.last_line)
    await case.kill(workspace)
    for pods in (case.pods, await case.other_controller()):
        assert pods.log_tail(workspace.id) == case.last_line


async def test_a_pod_that_failed_to_start_counts_as_started(
    case: PodsCase, workspace: Workspace
) -> None:
    async with case.failing_starts():
        with pytest.raises(OSError):
            await case.pods.start(workspace)
    assert not case.pods.is_alive(workspace)
    # If the pod did not count as started, the controller would retry the start without end.
    assert case.pods.was_started(workspace)
    assert await case.pods.end(workspace, 0) is True
    await case.start(workspace)
    assert case.pods.is_alive(workspace)


async def test_a_pod_without_its_files_is_not_alive_and_can_be_ended(
    case: PodsCase, workspace: Workspace
) -> None:
    await case.start(workspace)
    await case.remove_files(workspace)
    assert not case.pods.has_files(workspace.id)
    assert case.pods.explain(workspace) != ""
    assert not case.pods.is_alive(workspace)
    assert case.pods.was_started(workspace)
    assert await case.pods.end(workspace, 5) is True
    assert not case.runs(workspace.id)


@pytest.mark.parametrize("grace_seconds", [0, 5])
async def test_an_end_ends_the_agent_and_its_tools(
    case: PodsCase, workspace: Workspace, grace_seconds: float
) -> None:
    await case.start(workspace)
    waiting = asyncio.create_task(wait_exit(case, workspace))
    await settle()
    assert await case.pods.end(workspace, grace_seconds) is True
    await waiting
    assert not case.runs(workspace.id)
    assert case.was_asked_to_end(workspace) is (grace_seconds > 0)
    assert not case.pods.is_alive(workspace)
    # The end of a pod does not remove its records and files.
    assert case.pods.was_started(workspace)
    assert case.pods.has_files(workspace.id)


async def test_an_agent_that_does_not_end_within_the_grace_is_killed(
    case: PodsCase, workspace: Workspace
) -> None:
    await case.start(workspace)
    case.freeze(workspace)
    assert await case.pods.end(workspace, 0.1) is True
    assert not case.runs(workspace.id)
    assert not case.pods.is_alive(workspace)


async def test_an_end_ends_the_tools_of_an_agent_that_died(
    case: PodsCase, workspace: Workspace
) -> None:
    await case.start(workspace)
    await case.kill(workspace)
    assert await case.pods.end(workspace, 0) is True
    assert not case.runs(workspace.id)


async def test_an_end_may_be_repeated_by_any_controller(
    case: PodsCase, workspace: Workspace
) -> None:
    await case.start(workspace)
    ends = [case.pods.end(workspace, 0), case.pods.end(workspace, 0)]
    assert await asyncio.gather(*ends) == [True, True]
    for pods in (case.pods, await case.other_controller()):
        assert await pods.end(workspace, 5) is True
    assert not case.runs(workspace.id)


async def test_an_end_returns_false_if_processes_may_have_survived(
    case: PodsCase, workspace: Workspace
) -> None:
    await case.start(workspace)
    pods = await case.lose_track(workspace)
    assert await pods.end(workspace, 0) is False


async def test_an_end_does_not_end_later_pods_or_other_workspaces(
    case: PodsCase, workspace: Workspace
) -> None:
    later = replace(workspace, epoch=workspace.epoch + 1)
    other = world.workspace(epoch=workspace.epoch - 1, run_id=RUN_ID)
    await case.start(later)
    await case.start(other)
    # `end` may return False, because no pod with this epoch has run.
    await case.pods.end(workspace, 0)
    assert case.pods.is_alive(later)
    assert case.pods.is_alive(other)
    assert await case.pods.end(later, 0) is True
    assert case.pods.is_alive(other)
    assert await case.pods.end(other, 0) is True


async def test_an_end_ends_earlier_pods_of_the_workspace(
    case: PodsCase, workspace: Workspace
) -> None:
    earlier = replace(workspace, epoch=workspace.epoch - 1)
    await case.start(earlier)
    await case.pods.end(workspace, 0)
    assert not case.runs(workspace.id)
    assert not case.pods.is_alive(earlier)
    assert await case.pods.end(workspace, 0) is True


async def test_a_removal_leaves_nothing_of_a_workspace(
    case: PodsCase, workspace: Workspace
) -> None:
    earlier, other = replace(workspace, epoch=workspace.epoch - 1), world.workspace(run_id=RUN_ID)
    await case.start(other)
    for each in (earlier, workspace):
        await case.start(each)
        await case.pods.end(each, 0)
    for pods in (case.pods, await case.other_controller()):
        # The second controller repeats the removal.
        await case.remove(pods, workspace.id)
        assert not pods.has_files(workspace.id)
        assert not pods.was_started(workspace)
        assert pods.has_files(other.id)
    assert await case.leftovers(workspace.id) == []
    assert case.pods.is_alive(other)


async def test_a_workspace_that_never_had_a_pod_can_be_removed(
    case: PodsCase, workspace: Workspace
) -> None:
    assert await case.pods.remove(workspace.id) is True


async def test_the_next_pod_starts_after_the_previous_one_has_ended(
    case: PodsCase, workspace: Workspace
) -> None:
    await case.start(workspace)
    await case.pods.end(workspace, 0)
    following = replace(workspace, epoch=workspace.epoch + 1)
    await case.start(following)
    assert case.pods.was_started(following)
    assert case.pods.is_alive(following)
    assert not case.pods.is_alive(workspace)
    assert case.runs(workspace.id)
