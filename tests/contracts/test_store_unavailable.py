"""The contract of Store: its errors while the database does not answer."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from evershell.core.change import Hold, unchanged
from evershell.core.due import Kind
from evershell.core.errors import UnavailableError
from evershell.core.event import AuditFilter, LogScope
from evershell.core.ports import Store
from evershell.core.task_filter import AllTasks, ListFilter, OrgListFilter
from evershell.core.workspace_filter import AllWorkspaces
from evershell.store.pool import open_pool
from evershell.store.postgres_store import PostgresStore
from evershell.store.service_clock import machine_clock
from tests.support.faulty_store import METHODS, FaultyStore
from tests.support.store.audit import audit_entry
from tests.support.store.due import due
from tests.support.store.examples import NOW, first_call, intent, permission, workspace

_HOLD = Hold(org_id="org_1", held_by="user_1", held_since=NOW, reason="")
_CALLS: dict[str, Callable[[Store], Awaitable[object]]] = {
    "record_cancellation": lambda store: store.record_cancellation(
        permission(), "ws_1", None, intent()
    ),
    "cancel_tree": lambda store: store.cancel_tree(permission(), "ws_1", None, intent()),
    "match_tasks": lambda store: store.match_tasks(permission(), AllTasks(), None, 1),
    "cancel_tasks": lambda store: store.cancel_tasks(permission(), ["task_1"], intent()),
    "transition": lambda store: store.transition("ws_1", unchanged),
    "transition_many": lambda store: store.transition_many(["ws_1"], unchanged, "org_1"),
    "match_failed": lambda store: store.match_failed(permission(), AllWorkspaces(), 1),
    "create_workspace": lambda store: store.create_workspace(workspace()),
    "hold_org": lambda store: store.hold_org(_HOLD),
    "release_org": lambda store: store.release_org("org_1"),
    "get_hold": lambda store: store.get_hold("org_1"),
    "count_holds": lambda store: store.count_holds(),
    "list_old_logs": lambda store: store.list_old_logs(NOW, "", 1),
    "remove_old_tasks": lambda store: store.remove_old_tasks("ws", NOW, 0, 1),
    "oldest_end": lambda store: store.oldest_end(),
    "find_first_call": lambda store: store.find_first_call(first_call()),
    "record_answer": lambda store: store.record_answer(first_call(), "delivered"),
    "get_workspace": lambda store: store.get_workspace("ws_1"),
    "get_agent_card": lambda store: store.get_agent_card("ws_1"),
    "list_workspaces": lambda store: store.list_workspaces(permission(), None, 1),
    "remove_workspace": lambda store: store.remove_workspace("ws_1"),
    "find_deleted_workspace": lambda store: store.find_deleted_workspace("ws_1", "org_1"),
    "add_audit_entry": lambda store: store.add_audit_entry(audit_entry()),
    "get_task": lambda store: store.get_task("ws_1", "task_1"),
    "get_workspace_with_task": lambda store: store.get_workspace_with_task("ws_1", "task_1"),
    "list_tasks": lambda store: store.list_tasks("ws_1", None, 1),
    "count_tasks": lambda store: store.count_tasks("ws_1", ListFilter()),
    "list_org_tasks": lambda store: store.list_org_tasks(
        permission(), OrgListFilter(active=True), None, 1
    ),
    "list_events": lambda store: store.list_events("ws_1", 0, 1),
    "list_last_events": lambda store: store.list_last_events("ws_1", 9, 1),
    "last_position": lambda store: store.last_position(),
    "find_log_end": lambda store: store.find_log_end(),
    "list_log_events": lambda store: store.list_log_events([LogScope("org_1")], 0, 1, 1),
    "renew_lease": lambda store: store.renew_lease("ws_1", 1, 30),
    "list_audit_entries": lambda store: store.list_audit_entries(
        permission(), AuditFilter(), None, 1
    ),
    "list_wanted_pods": lambda store: store.list_wanted_pods("", 1),
    "due": lambda store: due(store, Kind.START),
    "lease_seconds_left": lambda store: store.lease_seconds_left(),
    "worker_silences": lambda store: store.worker_silences(),
    "count_workspaces": lambda store: store.count_workspaces(),
}


@pytest.fixture(params=["memory", "postgres"])
async def unavailable_store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """Each implementation of Store in turn, while its database does not answer."""
    if request.param == "memory":
        store = FaultyStore()
        store.unavailable = True
        yield store
        return
    async with open_pool("postgresql:///nowhere?host=/nonexistent", min_size=0) as pool:
        yield PostgresStore(pool, machine_clock)


def test_the_calls_cover_every_method() -> None:
    assert set(_CALLS) == METHODS


async def test_every_method_raises_unavailable(unavailable_store: Store) -> None:
    calls = [call(unavailable_store) for call in _CALLS.values()]
    raised = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(each) for each in raised] == [UnavailableError] * len(_CALLS)
