"""The contract of WebhookStore, and the deliveries that workers record and claim."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from evershell.core import task_lifecycle
from evershell.core.change import KeyTakenError
from evershell.core.errors import Failure, UnavailableError
from evershell.core.event import EventType
from evershell.core.ids import new_webhook_id
from evershell.core.task import TaskStarted
from evershell.features.webhooks import deliveries
from evershell.features.webhooks.deliveries import MAX_OF_RECEIVER, WebhookDeliveries
from evershell.features.webhooks.rules import (
    AttemptResult,
    ClaimedDelivery,
    DeliveryCounts,
    DeliveryStatus,
    TaskScope,
    Webhook,
)
from evershell.features.webhooks.store import PostgresWebhooks
from evershell.store.event_log import _Writers
from evershell.store.pool import Pool, open_pool
from evershell.store.postgres_store import PostgresStore
from tests.support.store.examples import (
    NOW,
    ORG,
    USER,
    complete,
    first_call,
    permission,
    task,
    with_task,
    workspace,
)
from tests.support.waiting import eventually_async
from tests.support.world import iteration

EVERYTHING = permission()
ENDS = (EventType.TASK_COMPLETED,)


def webhook(url: str = "https://a.example/hook", **fields: Any) -> Webhook:
    facts = {
        "org_id": ORG,
        "event_types": list(ENDS),
        "description": "",
        "created_by": USER,
        "created_at": NOW,
        "creator_user_id": None,
        "sealed_secret": b"secret",
        **fields,
    }
    return Webhook(id=new_webhook_id(NOW), url=url, **facts)


@dataclass
class Bench:
    """The stores of a database, and a clock that the test sets."""

    pool: Pool
    store: PostgresStore
    webhooks: PostgresWebhooks
    now: datetime = NOW

    def worker(self, name: str = "a") -> WebhookDeliveries:
        return WebhookDeliveries(self.pool, lambda: self.now, name)

    async def end_task(self, **fields: Any) -> tuple[str, str]:
        """Runs a task until it has ended. Returns the ids of its workspace and of the task."""
        busy, running = await with_task(self.store, **fields)
        await complete(self.store, busy, running.id)
        await self.worker().read_log()
        return busy.id, running.id


@pytest.fixture
async def bench(database_url: str) -> AsyncIterator[Bench]:
    async with open_pool(database_url) as pool:
        yield Bench(pool, PostgresStore(pool, lambda: NOW), PostgresWebhooks(pool))


async def claim(worker: WebhookDeliveries) -> list[ClaimedDelivery]:
    await worker.read_log()
    return list((await worker.claim([], [])).deliveries)


def delivered(claimed: ClaimedDelivery) -> AttemptResult:
    return AttemptResult(key=claimed.key, delivered_seq=claimed.events[-1][0])


def skipped(claimed: ClaimedDelivery) -> AttemptResult:
    """The result of a delivery whose webhook was disabled when the delivery was claimed."""
    return AttemptResult(
        key=claimed.key,
        delivered_seq=claimed.delivered_seq,
        error="the webhook is disabled",
        attempted=False,
    )


async def test_a_webhook_is_stored_as_it_is(bench: Bench) -> None:
    of_org = webhook(sealed_headers=b"h", creator_user_id=USER, description="ü")
    await bench.webhooks.create_webhook(of_org, 20)
    assert await bench.webhooks.list_webhooks(ORG) == [of_org]
    assert await bench.webhooks.list_webhooks("org_b") == []
    assert await bench.webhooks.delete_webhook(permission(org_id="org_b"), of_org.id) is None
    assert await bench.webhooks.delete_webhook(EVERYTHING, of_org.id) == of_org
    assert await bench.webhooks.delete_webhook(EVERYTHING, of_org.id) is None


async def test_only_its_creator_or_who_may_read_everything_changes_a_webhook(
    bench: Bench,
) -> None:
    made = webhook()
    await bench.webhooks.create_webhook(made, 20)
    day = NOW + timedelta(1)
    for refused in (
        permission(user_id="user_2", own_only=True),
        # An API key has no user, so no webhook is its own.
        permission(user_id=None, own_only=True),
    ):
        for change in (
            bench.webhooks.delete_webhook(refused, made.id),
            bench.webhooks.rotate_secret(refused, made.id, b"2", NOW, day),
            bench.webhooks.replay(refused, made.id, None, NOW),
        ):
            with pytest.raises(Failure) as raised:
                await change
            assert raised.value.slug == "permission_denied"
            assert raised.value.details["required"] == ["workspace:read"]
    assert await bench.webhooks.list_webhooks(ORG) == [made]
    own = permission(own_only=True)
    assert await bench.webhooks.replay(own, made.id, None, NOW) == (0, 0)
    assert await bench.webhooks.rotate_secret(own, made.id, b"2", NOW, day) is not None
    assert await bench.webhooks.delete_webhook(own, made.id) is not None


async def test_a_webhook_of_a_task_is_replaced_only_by_its_creator(bench: Bench) -> None:
    """A caller who may read every task may replace the webhook too."""
    workspace_id, task_id = await bench.end_task()
    scope = TaskScope(workspace_id=workspace_id, task_id=task_id, name="mine")
    made = webhook(task=scope)
    await bench.webhooks.create_webhook(made, 1)
    other = webhook(task=scope, created_by="user_2", creator_user_id="user_2")
    with pytest.raises(Failure) as raised:
        await bench.webhooks.create_webhook(other, 1)
    assert raised.value.slug == "permission_denied"
    assert await bench.webhooks.list_webhooks(ORG, scope) == [made]
    for replacing in (
        webhook(task=scope, creator_user_id=made.created_by),
        webhook(task=scope, created_by="user_2"),
    ):
        await bench.webhooks.create_webhook(replacing, 1)
        assert await bench.webhooks.list_webhooks(ORG, scope) == [replacing]


async def test_an_organization_has_a_limited_number(bench: Bench) -> None:
    creations = (bench.webhooks.create_webhook(webhook(), 2) for _ in range(5))
    results = await asyncio.gather(*creations, return_exceptions=True)
    refused = [each for each in results if each is not None]
    assert [each.slug for each in refused if isinstance(each, Failure)] == ["too_many_webhooks"] * 3
    assert len(await bench.webhooks.list_webhooks(ORG)) == 2
    await bench.webhooks.create_webhook(webhook(org_id="org_b"), 2)


async def test_a_key_is_stored_with_its_webhook(bench: Bench) -> None:
    await bench.webhooks.create_webhook(webhook(), 1, None, first_call(answer="first"))
    # The limit is reached, but a repeat of the call that reached it is recognized by its key.
    with pytest.raises(KeyTakenError):
        await bench.webhooks.create_webhook(webhook(), 1, None, first_call())
    with pytest.raises(Failure):
        await bench.webhooks.create_webhook(webhook(), 1, None, first_call("other"))
    assert await bench.store.find_first_call(first_call("other")) is None


async def test_a_second_rotation_keeps_the_first_secret(bench: Bench) -> None:
    made = webhook()
    await bench.webhooks.create_webhook(made, 20)
    day = NOW + timedelta(1)
    for secret, now in ((b"2", NOW), (b"3", NOW + timedelta(hours=1))):
        rotated = await bench.webhooks.rotate_secret(EVERYTHING, made.id, secret, now, day)
        assert rotated == replace(
            made,
            sealed_secret=secret,
            sealed_previous_secret=b"secret",
            previous_secret_expires_at=day,
        )
    rotated = await bench.webhooks.rotate_secret(EVERYTHING, made.id, b"4", day, day + timedelta(1))
    assert rotated is not None
    assert (rotated.sealed_secret, rotated.sealed_previous_secret) == (b"4", b"3")
    assert (
        await bench.webhooks.rotate_secret(permission(org_id="org_b"), made.id, b"5", day, day)
        is None
    )


async def test_an_event_is_delivered_once_and_then_settled(bench: Bench) -> None:
    made = webhook()
    await bench.webhooks.create_webhook(made, 20)
    await bench.webhooks.create_webhook(webhook(org_id="org_b"), 20)
    workspace_id, task_id = await bench.end_task()
    (pending,) = await bench.webhooks.list_deliveries(workspace_id, task_id)
    assert (pending.webhook_id, pending.status) == (made.id, DeliveryStatus.PENDING)
    worker = bench.worker()
    (claimed,) = await claim(worker)
    ((seq, event),) = claimed.events
    assert claimed.webhook == made
    assert event is not None
    assert (event.type, event.task_id, event.seq) == (EventType.TASK_COMPLETED, task_id, seq)
    assert await claim(bench.worker("b")) == []
    assert (await worker.record([delivered(claimed)])).keys == {claimed.key}
    (settled,) = await bench.webhooks.list_deliveries(workspace_id, task_id)
    assert (settled.status, settled.delivered_seq) == (DeliveryStatus.DELIVERED, seq)
    assert await claim(worker) == []


async def begin(connection: Any) -> None:
    """Begins a transaction that may stay open on a slow machine."""
    await connection.execute("BEGIN")
    await connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")


async def insert_end(connection: Any, task_id: str, seq: int = 100) -> None:
    """Copies an end of a task, as an event of a task with another id."""
    await connection.execute(
        "INSERT INTO events SELECT workspace_id, %s, type, time, %s, NULL, NULL, payload, "
        "nextval('event_positions') FROM events WHERE type = 'task_completed' "
        "ORDER BY workspace_id LIMIT 1",
        (seq, task_id),
    )


async def test_an_event_that_is_committed_after_later_ones_is_not_skipped(bench: Bench) -> None:
    await bench.webhooks.create_webhook(webhook(), 20)
    await bench.end_task()
    worker = bench.worker()
    assert len(await claim(worker)) == 1
    async with bench.pool.connection() as slow, bench.pool.connection() as undone:
        await begin(slow)
        await insert_end(slow, "slow")
        await begin(undone)
        await insert_end(undone, "undone", 200)
        await undone.execute("ROLLBACK")
        # The log cannot be read beyond the event that is not committed yet.
        _, task_id = await bench.end_task()
        assert await worker.read_log() is not None
        assert await claim(worker) == []
        await slow.execute("COMMIT")
    claimed = await claim(worker)
    assert {each.key.task_id for each in claimed} == {"slow", task_id}
    assert await worker.read_log() is None


async def test_events_of_the_previous_version_are_delivered_too(bench: Bench) -> None:
    """Programs of the previous version write no positions, so a trigger records their events."""
    types = [EventType.TASK_SUBMITTED, EventType.TASK_COMPLETED]
    await bench.webhooks.create_webhook(webhook(event_types=types), 20)
    _, running = await with_task(bench.store)
    async with bench.pool.connection() as connection:
        await connection.execute(
            "INSERT INTO events SELECT workspace_id, 99, 'task_completed', time, task_id, NULL, "
            "NULL, payload FROM events WHERE task_id = %s",
            (running.id,),
        )
    # The delivery begins with the event that was not read from the log yet.
    worker = bench.worker()
    (claimed,) = (await worker.claim([], [])).deliveries
    assert [event.type for _, event in claimed.events if event] == types
    await worker.record([delivered(claimed)])
    assert await claim(worker) == []


async def test_an_event_of_the_previous_version_brings_no_event_from_before_the_webhook(
    bench: Bench,
) -> None:
    busy, running = await with_task(bench.store)
    await complete(bench.store, busy, running.id)
    await bench.webhooks.create_webhook(webhook(), 20)
    async with bench.pool.connection() as connection:
        await connection.execute(
            "INSERT INTO events SELECT workspace_id, 99, type, time, NULL, NULL, NULL, payload "
            "FROM events WHERE task_id = %s AND type = 'task_completed'",
            (running.id,),
        )
    (claimed,) = (await bench.worker().claim([], [])).deliveries
    assert (claimed.delivered_seq, [seq for seq, _ in claimed.events]) == (98, [99])


async def test_what_was_seen_at_a_former_server_does_not_count(bench: Bench) -> None:
    """After a fail-over that has lost commits, positions are given again."""
    await bench.webhooks.create_webhook(webhook(), 20)
    worker = bench.worker()
    await bench.end_task()
    assert len(await claim(worker)) == 1
    # As if the worker had seen positions of a former server after a missing one.
    worker._settled._seen, worker._settled._writers = 10**6, _Writers(NOW, frozenset())
    for _ in range(2):
        await bench.end_task()
        assert len(await claim(worker)) == 1


async def test_a_transaction_that_writes_no_events_holds_up_no_reader(
    bench: Bench, database_url: str
) -> None:
    await bench.webhooks.create_webhook(webhook(), 20)
    await bench.end_task()
    async with bench.pool.connection() as undone, bench.pool.connection() as foreign:
        await begin(foreign)
        await foreign.execute("SELECT pg_current_xact_id()")
        await begin(undone)
        await insert_end(undone, "undone", 200)
        await undone.execute("ROLLBACK")
        await bench.end_task()
        assert len(await claim(bench.worker())) == 2
        await foreign.execute("ROLLBACK")


async def test_one_process_reads_the_log_at_a_time(bench: Bench) -> None:
    await bench.webhooks.create_webhook(webhook(), 20)
    busy, running = await with_task(bench.store)
    await complete(bench.store, busy, running.id)
    async with bench.pool.connection() as connection, connection.transaction():
        await connection.execute(deliveries.SQL.become_reader)
        assert await bench.worker().read_log() is not None
        assert await bench.webhooks.list_deliveries(busy.id, running.id) == []
    assert await bench.worker().read_log() is None
    assert len(await bench.webhooks.list_deliveries(busy.id, running.id)) == 1


async def test_a_webhook_gets_no_event_from_before_its_creation(bench: Bench) -> None:
    """Even if nobody has read the event by then."""
    busy, running = await with_task(bench.store)
    await complete(bench.store, busy, running.id)
    await bench.webhooks.create_webhook(webhook(), 20)
    assert await claim(bench.worker()) == []
    await bench.end_task()
    assert len(await claim(bench.worker())) == 1


async def test_an_unread_event_counts_as_pending_since_its_commit(bench: Bench) -> None:
    """So a reader that stands still is seen in the metric of the oldest event."""
    await bench.webhooks.create_webhook(webhook(), 20)
    busy, running = await with_task(bench.store)
    await complete(bench.store, busy, running.id)
    assert await deliveries.count_deliveries(bench.pool) == DeliveryCounts(0, 0, NOW)
    await bench.worker().read_log()
    assert await deliveries.count_deliveries(bench.pool) == DeliveryCounts(1, 0, NOW)


async def test_no_event_that_is_committed_after_a_creation_is_left_out(bench: Bench) -> None:
    """The creation is answered only after the commit of each event with an earlier position."""
    await bench.end_task()
    async with bench.pool.connection() as connection, connection.transaction():
        await insert_end(connection, "other")
        creation = asyncio.create_task(bench.webhooks.create_webhook(webhook(), 20))

        async def is_visible() -> bool:
            return bool(await bench.webhooks.list_webhooks(ORG))

        await eventually_async(is_visible)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(creation), 0.3)
    await creation


async def test_only_events_that_the_creator_may_read(bench: Bench) -> None:
    await bench.webhooks.create_webhook(webhook(creator_user_id="user_2"), 20)
    await bench.webhooks.create_webhook(webhook(creator_user_id=""), 20)
    await bench.end_task()
    assert await claim(bench.worker()) == []
    _, task_id = await bench.end_task(user_id="user_2")
    (claimed,) = await claim(bench.worker())
    assert claimed.key.task_id == task_id


async def test_a_claim_reads_no_large_events(bench: Bench) -> None:
    """PostgreSQL would have to decompress large events, and a claim may have thousands of them."""
    types = [EventType.ITERATION_COMPLETED]
    await bench.webhooks.create_webhook(webhook(event_types=types), 20)
    busy, running = await with_task(bench.store)
    done = iteration(1), iteration(2, output="a" * 100_000)
    await bench.store.transition(
        busy.id,
        lambda locked: task_lifecycle.commit(
            locked, busy.epoch, running.id, [TaskStarted(), *done], NOW
        ),
    )
    worker = bench.worker()
    (claimed,) = await claim(worker)
    (_, small), (seq, large) = claimed.events
    assert small is not None
    assert large is None
    read = await worker.read_event(busy.id, seq)
    assert read is not None
    assert read.payload["number"] == 2


async def test_a_deleted_webhook_holds_up_no_other_of_its_receiver(bench: Bench) -> None:
    """The deleted webhook's deliveries are older than the others, and too many for one claim."""
    deleted, kept = webhook(), webhook()
    await bench.webhooks.create_webhook(deleted, 20)
    for _ in range(MAX_OF_RECEIVER + 1):
        await bench.end_task()
    await bench.webhooks.delete_webhook(EVERYTHING, deleted.id)
    await bench.webhooks.create_webhook(kept, 20)
    await bench.end_task()
    worker = bench.worker()
    first = await worker.claim([], [])
    assert (first.deliveries, first.has_removed) == ([], True)
    second = await worker.claim([], [])
    assert [each.webhook.id for each in second.deliveries] == [kept.id]
    assert second.has_removed
    assert not (await worker.claim([], [])).has_removed


async def test_an_event_during_an_attempt_is_not_forgotten(bench: Bench) -> None:
    types = [EventType.TASK_SUBMITTED, EventType.TASK_COMPLETED]
    await bench.webhooks.create_webhook(webhook(event_types=types), 20)
    busy, running = await with_task(bench.store)
    worker = bench.worker()
    (claimed,) = await claim(worker)
    await complete(bench.store, busy, running.id)
    assert await claim(bench.worker("b")) == []
    recorded = await worker.record([delivered(claimed)])
    assert recorded.has_more
    (later,) = await claim(bench.worker("b"))
    assert [event.type for _, event in later.events if event] == [EventType.TASK_COMPLETED]


async def test_a_claim_is_taken_over_once_its_lease_has_ended(bench: Bench) -> None:
    await bench.webhooks.create_webhook(webhook(), 20)
    await bench.end_task()
    killed, other = bench.worker("killed"), bench.worker("other")
    (claimed,) = await claim(killed)
    bench.now += timedelta(seconds=59)
    assert await claim(other) == []
    bench.now += timedelta(seconds=2)
    (again,) = await claim(other)
    assert again == claimed
    assert not (await killed.record([delivered(claimed)])).keys
    assert (await other.record([delivered(again)])).keys == {again.key}


async def test_a_failure_is_due_again_and_then_given_up_and_replayed(bench: Bench) -> None:
    made = webhook()
    await bench.webhooks.create_webhook(made, 20)
    workspace_id, task_id = await bench.end_task()
    worker = bench.worker()
    (claimed,) = await claim(worker)
    failed = AttemptResult(
        key=claimed.key,
        delivered_seq=claimed.delivered_seq,
        attempts=1,
        error="it answered 500",
        retry_at=NOW + timedelta(seconds=5),
    )
    await worker.record([failed])
    (pending,) = await bench.webhooks.list_deliveries(workspace_id, task_id)
    assert (pending.status, pending.attempts, pending.last_error) == (
        DeliveryStatus.PENDING,
        1,
        "it answered 500",
    )
    assert pending.next_attempt_at == failed.retry_at
    assert await claim(worker) == []
    bench.now += timedelta(seconds=5)
    (again,) = await claim(worker)
    assert (again.attempts, again.pending_since) == (1, claimed.pending_since)
    await worker.record([replace(failed, attempts=2, retry_at=None)])
    (given_up,) = await bench.webhooks.list_deliveries(workspace_id, task_id)
    assert given_up.status is DeliveryStatus.FAILED
    assert await bench.webhooks.replay(EVERYTHING, made.id, "other", bench.now) == (0, 0)
    assert await bench.webhooks.replay(permission(org_id="org_b"), made.id, None, bench.now) is None
    assert await bench.webhooks.replay(EVERYTHING, made.id, task_id, bench.now) == (1, 0)
    (replayed,) = await claim(worker)
    assert replayed.attempts == 0


async def test_a_disabled_webhook_gets_nothing_until_it_is_replayed(bench: Bench) -> None:
    made = webhook()
    await bench.webhooks.create_webhook(made, 20)
    await bench.end_task()
    worker = bench.worker()
    (claimed,) = await claim(worker)
    gone = AttemptResult(
        key=claimed.key,
        delivered_seq=claimed.delivered_seq,
        attempts=1,
        error="gone",
        disables_webhook=True,
    )
    await worker.record([gone])
    (disabled,) = await bench.webhooks.list_webhooks(ORG)
    assert disabled.disabled_at == bench.now
    await bench.end_task()
    (later,) = await claim(worker)
    assert later.webhook == disabled
    assert not (await worker.record([skipped(later)])).has_more
    assert await bench.webhooks.replay(EVERYTHING, made.id, None, bench.now) == (2, 0)
    assert await bench.webhooks.list_webhooks(ORG) == [made]
    assert len(await claim(worker)) == 2


async def test_a_delivery_that_is_skipped_during_a_replay_is_due_again(bench: Bench) -> None:
    """The replay does not count the delivery, because the delivery has not failed yet."""
    made = webhook(disabled_at=NOW)
    await bench.webhooks.create_webhook(made, 20)
    await bench.end_task()
    worker = bench.worker()
    (claimed,) = await claim(worker)
    assert await bench.webhooks.replay(EVERYTHING, made.id, None, bench.now) == (0, 0)
    assert (await worker.record([skipped(claimed)])).has_more
    (again,) = await claim(worker)
    assert (again.key, again.webhook.disabled_at) == (claimed.key, None)


async def test_a_locked_row_delays_nothing(bench: Bench) -> None:
    await bench.webhooks.create_webhook(webhook(), 20)
    locked_id, _ = await bench.end_task()
    await bench.end_task()
    worker = bench.worker()
    async with bench.pool.connection() as connection, connection.transaction():
        await connection.execute(
            "SELECT FROM webhook_deliveries WHERE workspace_id = %s FOR UPDATE", (locked_id,)
        )
        (free,) = await claim(worker)
        assert free.key.workspace_id != locked_id
    (other,) = await claim(worker)
    async with bench.pool.connection() as connection, connection.transaction():
        await connection.execute(
            "SELECT FROM webhook_deliveries WHERE workspace_id = %s FOR UPDATE", (locked_id,)
        )
        assert (await worker.record([delivered(free), delivered(other)])).keys == {free.key}
    assert (await worker.record([delivered(other)])).keys == {other.key}


async def test_receivers_take_turns(bench: Bench) -> None:
    """A receiver with many deliveries leaves room for others, and a claim skips busy receivers."""
    urls = [f"https://{name}.example/" for name in "abc"]
    for url in urls:
        await bench.webhooks.create_webhook(webhook(url), 20)
    await bench.webhooks.create_webhook(webhook(org_id="org_b"), 20)
    await bench.end_task()
    foreign = workspace(org_id="org_b")
    await bench.store.create_workspace(foreign)
    submitted = task(foreign.id)
    await bench.store.transition(
        foreign.id, lambda locked: task_lifecycle.submit(locked, submitted, USER)
    )
    await complete(bench.store, foreign, submitted.id)
    worker = bench.worker()
    await worker.read_log()
    first = await worker.claim([(ORG, "https://b.example:443")], ["org_b"])
    assert first.has_wrapped
    assert {each.webhook.url for each in first.deliveries} == {urls[0], urls[2]}
    second = await claim(worker)
    assert {each.webhook.org_id for each in second} == {ORG, "org_b"}
    assert urls[1] in {each.webhook.url for each in second}


async def test_a_webhook_of_a_task_gets_its_earlier_events(bench: Bench) -> None:
    workspace_id, task_id = await bench.end_task()
    scope = TaskScope(workspace_id=workspace_id, task_id=task_id, name="mine")
    made = webhook(task=scope)
    await bench.webhooks.create_webhook(made, 1)
    assert await bench.webhooks.list_webhooks(ORG) == []
    assert await bench.webhooks.list_webhooks(ORG, scope) == [made]
    (claimed,) = await claim(bench.worker())
    assert [event.type for _, event in claimed.events if event] == [EventType.TASK_COMPLETED]
    # A webhook with the same name replaces this one, and does not count towards the limit.
    replacing = webhook(task=scope)
    await bench.webhooks.create_webhook(replacing, 1)
    assert await bench.webhooks.list_webhooks(ORG, scope) == [replacing]
    with pytest.raises(Failure):
        await bench.webhooks.create_webhook(webhook(task=replace(scope, name="other")), 1)


async def test_old_deliveries_and_those_of_deleted_webhooks_are_removed(bench: Bench) -> None:
    kept, deleted = webhook(), webhook("https://b.example/")
    for each in (kept, deleted):
        await bench.webhooks.create_webhook(each, 20)
    await bench.end_task()
    worker = bench.worker()
    claims = {each.webhook.id: each for each in await claim(worker)}
    await worker.record([delivered(claims[kept.id])])
    await bench.webhooks.delete_webhook(EVERYTHING, deleted.id)

    async def webhook_ids() -> list[str]:
        async with bench.pool.connection() as connection:
            cursor = await connection.execute("SELECT webhook_id FROM webhook_deliveries")
            return [row.webhook_id for row in await cursor.fetchall()]

    bench.now += timedelta(seconds=61)
    assert await claim(worker) == []
    assert await webhook_ids() == [kept.id]
    bench.now += timedelta(days=31)
    await worker.prune()
    assert await webhook_ids() == []


async def test_a_task_is_removed_with_its_deliveries_once_they_are_made(bench: Bench) -> None:
    await bench.webhooks.create_webhook(webhook(), 20)
    old = await bench.end_task()
    scope = TaskScope(workspace_id=old[0], task_id=old[1], name="mine")
    await bench.webhooks.create_webhook(webhook(task=scope), 20)

    async def remove() -> int:
        removed = await bench.store.remove_old_tasks(old[0], NOW + timedelta(days=1), 0, 10)
        return removed.tasks

    assert await remove() == 0
    worker = bench.worker()
    while claimed := await claim(worker):
        await worker.record([delivered(each) for each in claimed])
    assert len(await bench.webhooks.list_deliveries(*old)) == 2
    assert await remove() == 1
    assert not await bench.webhooks.list_deliveries(*old)
    assert not await bench.webhooks.list_webhooks(ORG, scope)
    assert len(await bench.webhooks.list_webhooks(ORG)) == 1


async def test_what_another_key_has_sealed_is_sealed_again(bench: Bench) -> None:
    made = webhook(sealed_secret=b"OLD-a", sealed_headers=b"OLD-b")
    other = webhook(sealed_secret=b"NEW-c")
    for each in (made, other):
        await bench.webhooks.create_webhook(each, 20)
    await bench.worker().reseal(b"NEW-", lambda sealed, owner: b"NEW-" + sealed[4:], "")
    assert {each.id: each for each in await bench.webhooks.list_webhooks(ORG)} == {
        made.id: replace(made, sealed_secret=b"NEW-a", sealed_headers=b"NEW-b"),
        other.id: other,
    }


async def test_all_webhooks_are_sealed_again_although_some_cannot_be_opened(bench: Bench) -> None:
    """There are more webhooks than one call handles."""
    lost = [webhook(sealed_secret=b"LOST") for _ in range(101)]
    made = [webhook(sealed_secret=b"OLD-") for _ in range(101)]
    for each in (*lost, *made):
        await bench.webhooks.create_webhook(each, 300)

    def seal_again(sealed: bytes, owner: str) -> bytes:
        if sealed == b"LOST":
            raise UnavailableError
        return b"NEW-"

    after_id: str | None = ""
    while after_id is not None:
        after_id = await bench.worker().reseal(b"NEW-", seal_again, after_id)
    sealed = {each.id: each.sealed_secret for each in await bench.webhooks.list_webhooks(ORG)}
    assert sealed == {each.id: b"LOST" for each in lost} | {each.id: b"NEW-" for each in made}
