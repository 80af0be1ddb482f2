"""The contract of Store: every text is stored as data, whatever characters it has."""

from dataclasses import replace
from typing import Any

import pytest

from evershell.core import task_lifecycle
from evershell.core.caller import Caller, CredentialKind, Permission
from evershell.core.change import Change, Locked
from evershell.core.errors import Failure
from evershell.core.event import AuditFilter
from evershell.core.ports import Store
from evershell.core.task import TaskEnded, TaskStarted, TaskStatus
from tests.support.injections import INJECTIONS
from tests.support.store.audit import audit_entry
from tests.support.store.examples import NOW, intent, task, workspace
from tests.support.world import iteration


@pytest.mark.parametrize("name", INJECTIONS)
async def test_every_text_is_stored_as_it_is(store: Store, name: str) -> None:
    text = INJECTIONS[name]
    # The ids of organizations and users may be any text: the identity provider chooses them.
    mine = Permission(
        Caller(text, text, CredentialKind.SESSION, frozenset()), ("workspace:write",), own_only=True
    )
    new = replace(workspace(org_id=text, user_id=text), name=text)
    submitted = replace(task(new.id), description=text, metadata={text: text})
    # All text fields, except those with fixed values or with ids that the service makes or checks.
    facts = ("org_id", "actor_id", "credential_id", "reason", "request_id", "client_address")
    texts: dict[str, Any] = dict.fromkeys(facts, text)
    entry = audit_entry(workspace_id=new.id, **texts)
    await store.create_workspace(new, entry)

    def submit(locked: Locked) -> Change:
        return task_lifecycle.submit(locked, submitted, text)

    def finish(locked: Locked) -> Change:
        done = iteration(1, output=text, content=text)
        ended = TaskEnded(status=TaskStatus.COMPLETED, result=text)
        return task_lifecycle.commit(
            locked, new.epoch, submitted.id, [TaskStarted(), done, ended], NOW
        )

    await store.transition(new.id, submit)
    cancel = intent(text, request_id=text, requested_by=text)
    recorded = await store.record_cancellation(mine, new.id, None, cancel, "", None)
    assert recorded.recorded
    await store.transition(new.id, finish)

    (found,) = await store.list_workspaces(mine, None, 9)
    assert (found.id, found.name, found.org_id, found.created_by_user_id) == (
        new.id,
        text,
        text,
        text,
    )
    ended = await store.get_task(new.id, submitted.id)
    assert ended is not None and ended.status is TaskStatus.CANCELLED
    assert (ended.description, ended.metadata, ended.result) == (text, {text: text}, text)
    assert ended.cancel == cancel
    events = {str(each.type): each for each in await store.list_events(new.id, 0, 100)}
    payload = events["iteration_completed"].payload
    assert payload["model_call"]["content"] == payload["tool_call"]["result"]["output"] == text
    assert await store.list_audit_entries(mine, AuditFilter(actor_id=text), None, 9) == [entry]


@pytest.mark.parametrize("name", INJECTIONS)
async def test_a_text_finds_only_what_is_called_so(store: Store, name: str) -> None:
    text = INJECTIONS[name]
    kept = workspace()
    await store.create_workspace(kept, audit_entry(workspace_id=kept.id))
    for org_id, user_id in ((text, "user_1"), (kept.org_id, text)):
        caller = Caller(org_id, user_id, CredentialKind.SESSION, frozenset())
        by = Permission(caller, ("workspace:write",), own_only=True)
        assert kept.id not in [each.id for each in await store.list_workspaces(by, None, 100)]
        recorded = await store.record_cancellation(by, kept.id, text, intent(), "", None)
        assert not recorded.recorded
        assert await store.list_audit_entries(by, AuditFilter(outcome=text), None, 9) == []
    assert await store.get_workspace(text) is None
    assert await store.get_task(kept.id, text) is None
    assert await store.list_tasks(text, None, 9) == []
    with pytest.raises(Failure, match="There is no workspace"):
        await store.list_events(text, 0, 9)
    assert [each.id for each in await store.list_tasks(kept.id, text, 9)] == []
    assert await store.get_workspace(kept.id) == kept
