"""The contract of Store: idempotency keys."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from evershell.core import task_lifecycle
from evershell.core.change import KEY_KEPT, Change, FirstCall, KeyTakenError, Locked, unchanged
from evershell.core.event import AuditFilter
from evershell.core.ports import Store
from tests.support.store.audit import audit_entry
from tests.support.store.examples import (
    NOW,
    USER,
    first_call,
    permission,
    task,
    workspace,
)


async def submit(store: Store, workspace_id: str, call: FirstCall) -> Change | None:
    """Submits a task with the key of the call, and records an audit entry."""
    submitted = task(workspace_id)

    def decide(locked: Locked) -> Change:
        change = task_lifecycle.submit(locked, submitted, USER)
        entry = audit_entry(workspace_id=workspace_id, task_id=submitted.id)
        return replace(change, audit=entry, first_call=call)

    return await store.transition(workspace_id, decide)


async def idle(store: Store) -> str:
    added = workspace()
    await store.create_workspace(added)
    return added.id


async def find(store: Store, call: FirstCall) -> FirstCall | None:
    return await store.find_first_call(call)


async def test_a_key_is_stored_with_the_change_of_its_call(store: Store) -> None:
    workspace_id = await idle(store)
    call = first_call("clé 'x' \\", workspace_id=workspace_id, task_id="task_1")
    assert await find(store, call) is None
    assert await submit(store, workspace_id, call) is not None
    assert await find(store, call) == call
    assert await find(store, replace(call, org_id="org_b")) is None
    assert await find(store, replace(call, key="another")) is None


async def test_a_key_is_stored_with_a_new_workspace(store: Store) -> None:
    added = workspace()
    call = first_call(workspace_id=added.id)
    await store.create_workspace(added, None, call)
    assert await find(store, call) == call
    other = workspace()
    with pytest.raises(KeyTakenError):
        await store.create_workspace(other, audit_entry(), first_call(workspace_id=other.id))
    assert await store.get_workspace(other.id) is None
    assert await store.list_audit_entries(permission(), AuditFilter(), None, 10) == []
    # The same key is free in another organization.
    elsewhere = workspace(org_id="org_b")
    await store.create_workspace(elsewhere, None, replace(call, org_id="org_b"))


async def test_a_key_without_a_caller_counts_only_for_the_same_request(store: Store) -> None:
    """The previous version of the service stores keys without a caller."""
    first, second = await idle(store), await idle(store)
    old = first_call("chosen", workspace_id=first, task_id="task_1", fingerprint=b"same")
    await submit(store, first, old)
    repeat = replace(old, key="session:user_1\nchosen", workspace_id=second, task_id="task_2")
    with pytest.raises(KeyTakenError):
        await submit(store, second, repeat)
    assert await find(store, repeat) == old
    other = replace(repeat, fingerprint=b"other")
    assert await find(store, other) is None
    assert await submit(store, second, other) is not None
    assert await find(store, other) == other
    # A key that was stored with its caller has precedence over a key without a caller.
    assert await find(store, repeat) == other


async def test_a_change_with_a_taken_key_is_not_committed(store: Store) -> None:
    first, second = await idle(store), await idle(store)
    call = first_call(workspace_id=first)
    await submit(store, first, call)
    with pytest.raises(KeyTakenError):
        await submit(store, second, first_call(workspace_id=second))
    assert await store.list_tasks(second, None, 10) == []
    assert await store.list_events(second, 0, 10) == []
    listed = await store.list_audit_entries(permission(), AuditFilter(), None, 10)
    assert [entry.workspace_id for entry in listed] == [first]
    assert await find(store, call) == call
    # After the refusal, the connection can still be used.
    assert await store.transition(second, unchanged) is not None


async def test_an_expired_key_is_free_again(store: Store) -> None:
    first, second = await idle(store), await idle(store)
    old = first_call(workspace_id=first, task_id="task_1", called_at=NOW)
    await submit(store, first, old)
    await store.record_answer(old, "running")
    for age, is_free in ((KEY_KEPT - timedelta(microseconds=1), False), (KEY_KEPT, True)):
        new = first_call(workspace_id=second, task_id="task_2", called_at=NOW + age)
        assert (await find(store, new) is None) is is_free
        if is_free:
            await submit(store, second, new)
            assert await find(store, new) == new
        else:
            with pytest.raises(KeyTakenError):
                await submit(store, second, new)


async def test_the_first_answer_stays(store: Store) -> None:
    workspace_id = await idle(store)
    call = first_call(workspace_id=workspace_id, task_id="task_1")
    await submit(store, workspace_id, call)
    answers = ["delivered", "running", "agent_unreachable"]
    given = await asyncio.gather(*(store.record_answer(call, answer) for answer in answers))
    assert len(set(given)) == 1
    assert await find(store, call) == replace(call, answer=given[0])
    # No answer is recorded if the key is no longer stored, or belongs to a later call.
    gone = first_call("gone", task_id="task_1")
    assert await store.record_answer(gone, "delivered") == "delivered"
    later = replace(call, task_id="task_2")
    assert await store.record_answer(later, "submitted") == "submitted"


async def test_of_first_calls_at_the_same_time_one_is_committed(store: Store) -> None:
    """Each call has its own workspace, so only the key makes the calls wait for each other."""
    places = [await idle(store) for _ in range(8)]
    calls = [first_call(workspace_id=place) for place in places]
    ended = await asyncio.gather(
        *(submit(store, place, call) for place, call in zip(places, calls, strict=True)),
        return_exceptions=True,
    )
    assert sum(isinstance(each, Change) for each in ended) == 1
    assert sum(isinstance(each, KeyTakenError) for each in ended) == len(places) - 1
    stored = await find(store, calls[0])
    busy = [place for place in places if await store.list_tasks(place, None, 10)]
    assert stored is not None and busy == [stored.workspace_id]
