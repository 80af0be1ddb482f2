"""The contract of Store: contents and order of its lists."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

from evershell.core import task_lifecycle
from evershell.core.caller import Permission
from evershell.core.due import Kind
from evershell.core.ids import new_task_id
from evershell.core.ports import Store
from evershell.core.task import TaskStatus
from evershell.core.task_filter import ListFilter, OrgListFilter
from evershell.core.validation import Page
from evershell.core.workspace import AgentCard, WorkspaceStatus
from tests.support.store.due import BOUNDS
from tests.support.store.examples import (
    NOW,
    complete,
    intent,
    permission,
    task,
    with_task,
    workspace,
)
from tests.support.store.trees import end, submit


async def test_workspaces_are_listed_newest_first_in_pages(store: Store) -> None:
    mine = [workspace() for _ in range(3)]
    others = [workspace(user_id="user_2"), workspace(user_id=None), workspace(org_id="org_b")]
    for each in mine + others:
        await store.create_workspace(each)
    newest_first = sorted((each.id for each in mine + others[:2]), reverse=True)
    assert [each.id for each in await store.list_workspaces(permission(), None, 10)] == newest_first
    assert [
        each.id for each in await store.list_workspaces(permission(), newest_first[1], 2)
    ] == newest_first[2:4]
    own = await store.list_workspaces(permission(own_only=True), None, 10)
    assert [each.id for each in own] == sorted((each.id for each in mine), reverse=True)
    assert not await store.list_workspaces(permission(user_id=None, own_only=True), None, 10)


async def test_some_workspaces_are_listed_if_the_caller_may_read_them(store: Store) -> None:
    mine, theirs, foreign = workspace(), workspace(user_id="user_2"), workspace(org_id="org_b")
    for each in (mine, theirs, foreign, workspace()):
        await store.create_workspace(each)
    named = (theirs.id, mine.id, "ws_unknown", foreign.id, mine.id)

    async def listed(by: Permission, before_id: str | None = None, limit: int = 10) -> list[str]:
        return [each.id for each in await store.list_workspaces(by, before_id, limit, named)]

    newest_first = sorted((mine.id, theirs.id), reverse=True)
    assert await listed(permission()) == newest_first
    assert await listed(permission(), limit=1) == newest_first[:1]
    assert await listed(permission(), newest_first[0]) == newest_first[1:]
    assert await listed(permission(own_only=True)) == [mine.id]
    assert await listed(permission(org_id="org_c")) == []


async def test_tasks_and_events_are_listed_per_workspace(store: Store) -> None:
    busy, first = await with_task(store)
    await with_task(store)
    await complete(store, busy, first.id)
    second = task(busy.id)
    await store.transition(busy.id, lambda locked: task_lifecycle.submit(locked, second, "user_1"))
    newest_first = sorted((first.id, second.id), reverse=True)
    assert [each.id for each in await store.list_tasks(busy.id, None, 10)] == newest_first
    assert [
        each.id for each in await store.list_tasks(busy.id, newest_first[0], 10)
    ] == newest_first[1:]
    assert len(await store.list_tasks(busy.id, None, 1)) == 1
    assert [event.seq for event in await store.list_events(busy.id, 1, 1)] == [2]
    assert await store.list_events(busy.id, 3, 10) == []


async def test_the_last_events_are_listed_newest_first(store: Store) -> None:
    busy, first = await with_task(store)
    await complete(store, busy, first.id)
    second = task(busy.id)
    await store.transition(busy.id, lambda locked: task_lifecycle.submit(locked, second, "user_1"))
    await with_task(store)
    events = await store.list_events(busy.id, 0, 10)
    assert [event.seq for event in events] == [1, 2, 3]
    assert await store.list_last_events(busy.id, 2**63 - 1, 3) == (events[::-1], False)
    assert await store.list_last_events(busy.id, 2**63 - 1, 2) == ([events[2], events[1]], True)
    assert await store.list_last_events(busy.id, 2, 2) == ([events[0]], False)
    assert await store.list_last_events(busy.id, 1, 2) == ([], False)
    assert await store.list_last_events("ws_unknown", 2, 2) == ([], False)


async def test_a_list_of_long_tasks_has_more_than_a_page(store: Store) -> None:
    """A store may return fewer tasks than requested, but must show that there are more."""
    busy, first = await with_task(store)
    ids = [first.id]
    await complete(store, busy, first.id)
    for _ in range(12):
        long = replace(task(busy.id), description="é" * 100_000)
        await store.transition(
            busy.id, lambda locked: task_lifecycle.submit(locked, long, "user_1")
        )
        await complete(store, busy, long.id)
        ids.append(long.id)
    listed: list[str] = []
    token = ""
    while True:
        page = Page.of(50, token)
        found = await store.list_tasks(busy.id, page.before_id, page.size + 1)
        items, token = page.cut(found, lambda each: len(each.description))
        listed += [each.id for each in items]
        if not token:
            break
        assert len(items) == 9
    assert listed == sorted(ids, reverse=True)


async def test_wanted_pods_are_all_that_have_not_ended(store: Store) -> None:
    for status in WorkspaceStatus:
        await store.create_workspace(workspace(status))
    wanted = {each.status for each in await store.list_wanted_pods("", 10)}
    assert wanted == {
        WorkspaceStatus.PROVISIONING,
        WorkspaceStatus.IDLE,
        WorkspaceStatus.BUSY,
        WorkspaceStatus.STOPPING,
    }


async def test_workspaces_are_counted_by_status(store: Store) -> None:
    assert await store.count_workspaces() == {}
    for status in (WorkspaceStatus.FAILED, WorkspaceStatus.IDLE, WorkspaceStatus.FAILED):
        await store.create_workspace(workspace(status))
    assert await store.count_workspaces() == {WorkspaceStatus.FAILED: 2, WorkspaceStatus.IDLE: 1}


async def test_open_cancellations_are_listed_with_their_workspaces(store: Store) -> None:
    busy, submitted = await with_task(store)
    ended, finished = await with_task(store)
    await with_task(store)
    for each in (busy, ended):
        await store.record_cancellation(permission(), each.id, None, intent())
    await complete(store, ended, finished.id)
    work = await store.due(NOW, {Kind.CANCELLATION: None}, 9, BOUNDS)
    (listed,) = work.rows[Kind.CANCELLATION]
    assert (work.open_cancellations, work.oldest_cancellation) == (1, intent().requested_at)
    assert (listed.workspace, listed.task) == (
        replace(busy, last_seq=2),
        replace(submitted, cancel=intent()),
    )


async def test_a_workspace_is_read_together_with_one_of_its_tasks(store: Store) -> None:
    busy, submitted = await with_task(store)
    other, foreign = await with_task(store)
    await store.record_cancellation(permission(), busy.id, None, intent())
    cancelled = replace(submitted, cancel=intent())
    both = await store.get_workspace_with_task(busy.id, submitted.id)
    assert both == (replace(busy, last_seq=2), cancelled)
    assert await store.get_workspace_with_task(other.id, submitted.id) == (other, None)
    assert await store.get_workspace_with_task(other.id, new_task_id()) == (other, None)
    assert await store.get_workspace_with_task("ws_unknown", foreign.id) == (None, None)


async def test_a_workspace_is_read_for_its_own_organization_only(store: Store) -> None:
    busy, submitted = await with_task(store)
    for org_id in (None, busy.org_id):
        assert await store.get_workspace(busy.id, org_id) == busy
        assert await store.get_workspace_with_task(busy.id, submitted.id, org_id) == (
            busy,
            submitted,
        )
    for other in ("org_b", ""):
        assert await store.get_workspace(busy.id, other) is None
        assert await store.get_workspace_with_task(busy.id, submitted.id, other) == (None, None)


async def test_tasks_are_listed_and_counted_by_status_and_time(store: Store) -> None:
    """A task that is being cancelled counts as running."""
    busy, first = await with_task(store)
    await complete(store, busy, first.id)
    second = replace(task(busy.id), created_at=NOW + timedelta(hours=1))
    await store.transition(busy.id, lambda locked: task_lifecycle.submit(locked, second, "user_1"))

    async def listed(**fields: Any) -> list[str]:
        wanted = ListFilter(**fields)
        found = await store.list_tasks(busy.id, None, 10, wanted)
        assert await store.count_tasks(busy.id, wanted) == len(found)
        return [each.id for each in found]

    assert await listed() == sorted((first.id, second.id), reverse=True)
    assert await listed(statuses=frozenset({TaskStatus.SUBMITTED})) == [second.id]
    assert await listed(statuses=frozenset({TaskStatus.COMPLETED})) == [first.id]
    assert await listed(statuses=frozenset()) == []
    assert await listed(changed_since=second.created_at) == [second.id]
    await store.record_cancellation(permission(), busy.id, second.id, intent())
    assert await listed(statuses=frozenset({TaskStatus.SUBMITTED})) == []
    assert await listed(statuses=frozenset({TaskStatus.RUNNING})) == [second.id]


async def test_the_active_tasks_of_an_organization_are_listed_newest_first(store: Store) -> None:
    tasks = [await submit(store, user_id=f"user_{1 + number // 3}") for number in range(4)]
    child, foreign = await submit(store, tasks[0]), await submit(store, org_id="org_b")
    ended, cancelled = tasks[1], tasks[2]
    await end(store, ended)
    await store.record_cancellation(permission(), cancelled.workspace_id, None, intent())
    active = sorted((each.id for each in (*tasks, child) if each != ended), reverse=True)

    async def listed(
        before_id: str | None = None,
        limit: int = 10,
        by: Permission | None = None,
        **fields: Any,
    ) -> list[str]:
        wanted = OrgListFilter(active=True, **fields)
        return [
            each.id
            for each in await store.list_org_tasks(by or permission(), wanted, before_id, limit)
        ]

    assert await listed() == active
    assert await listed(limit=2) == active[:2]
    assert await listed(active[1], 2) == active[2:]
    assert await listed(by=permission(org_id="org_b")) == [foreign.id]
    assert await listed(by=permission(user_id="user_2", own_only=True)) == [tasks[3].id]
    assert await listed(by=permission(user_id=None, own_only=True)) == []
    assert await listed(root_task_id=tasks[0].id) == [child.id, tasks[0].id]
    assert await listed(parent_task_id=tasks[0].id) == [child.id]
    assert await listed(workspace_id=cancelled.workspace_id) == [cancelled.id]
    assert await listed(workspace_id=ended.workspace_id) == []
    some = (cancelled.workspace_id, tasks[0].workspace_id, foreign.workspace_id, "ws_unknown")
    of_some = sorted((cancelled.id, tasks[0].id), reverse=True)
    assert await listed(workspace_ids=some) == of_some
    assert await listed(of_some[0], 1, workspace_ids=some) == of_some[1:]
    assert await listed(workspace_ids=some, workspace_id=cancelled.workspace_id) == [cancelled.id]
    assert await listed(workspace_ids=some, workspace_id=child.workspace_id) == []
    assert await listed(workspace_ids=some, root_task_id=tasks[0].id) == [tasks[0].id]
    assert await listed(workspace_ids=(ended.workspace_id,)) == []
    mine = permission(user_id="user_2", own_only=True)
    assert await listed(by=mine, workspace_ids=(*some, tasks[3].workspace_id)) == [tasks[3].id]


async def test_an_agent_card_belongs_to_its_workspace(store: Store) -> None:
    card = AgentCard(description="d", skills={"build": "Builds."}, is_public=True)
    with_card, without = workspace(), workspace()
    await store.create_workspace(with_card, card=card)
    await store.create_workspace(without)
    assert await store.get_agent_card(with_card.id) == (with_card, card)
    assert await store.get_agent_card(without.id, without.org_id) == (without, AgentCard())
    assert (await store.get_agent_card(with_card.id, "org_none"))[0] is None
