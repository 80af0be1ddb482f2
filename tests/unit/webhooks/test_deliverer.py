"""The deliverer, with a real database and real receivers: order, retries, and delays."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from ipaddress import ip_network
from typing import Any
from unittest.mock import AsyncMock

import pytest

from evershell.auth.sealing import SigningKeySealing
from evershell.auth.signing_keys import new_key, with_new_key
from evershell.core.errors import UnavailableError
from evershell.core.event import EventType
from evershell.core.ids import new_webhook_id
from evershell.core.task import TaskStarted
from evershell.core.task_lifecycle import commit
from evershell.features.webhooks.deliverer import Counts, Deliverer
from evershell.features.webhooks.deliveries import MAX_RECEIVERS_OF_ORG, WebhookDeliveries
from evershell.features.webhooks.payload import FORM, payload
from evershell.features.webhooks.rules import Webhook
from evershell.features.webhooks.sender import _DNS_THREADS, Sender
from evershell.features.webhooks.store import PostgresWebhooks
from evershell.store.background import running
from evershell.store.pool import Pool
from evershell.store.postgres_store import PostgresStore
from tests.support.receivers import Receiver, accept, receiving, refuse
from tests.support.store.examples import NOW, ORG, USER, complete, permission, with_task
from tests.support.waiting import eventually_async
from tests.support.world import iteration

KEY = new_key()
SEALING = SigningKeySealing(KEY)
TYPES = [EventType.TASK_SUBMITTED, EventType.TASK_COMPLETED]
LIMIT_SECONDS = 60.0


@dataclass
class Delivering:
    """The stores, the receivers, and a clock that the test sets."""

    pool: Pool
    store: PostgresStore
    webhooks: PostgresWebhooks
    receivers: ExitStack
    now: datetime = NOW
    counts: list[Counts] = field(default_factory=list)

    async def receiver(self, **fields: Any) -> tuple[Webhook, Receiver]:
        receiver = self.receivers.enter_context(receiving())
        return await self.webhook(**{"url": receiver.url, **fields}), receiver

    async def webhook(self, **fields: Any) -> Webhook:
        webhook_id = new_webhook_id(NOW)
        facts = {
            "org_id": ORG,
            "event_types": TYPES,
            "description": "",
            "created_by": USER,
            "created_at": NOW,
            "creator_user_id": None,
            "sealed_secret": SEALING.seal(b"0" * 32, webhook_id),
            **fields,
        }
        webhook = Webhook(id=webhook_id, **facts)
        await self.webhooks.create_webhook(webhook, 200)
        return webhook

    @asynccontextmanager
    async def delivering(self, name: str = "a", sealing: Any = SEALING) -> AsyncIterator[Deliverer]:
        deliveries = WebhookDeliveries(self.pool, lambda: self.now, name)
        async with Sender((ip_network("127.0.0.0/8"),)) as sender:
            deliverer = Deliverer(
                deliveries,
                sender,
                sealing,
                {FORM: payload},
                lambda: self.now,
                self.counts.append,
            )
            async with running(deliverer.run(), "deliverer"):
                deliverer.wake()
                yield deliverer

    async def end_task(self, org_id: str = ORG) -> tuple[str, str]:
        busy, task = await with_task(self.store, org_id=org_id)
        await complete(self.store, busy, task.id)
        reader = WebhookDeliveries(self.pool, lambda: self.now, "reader")
        # The deliverer may be reading the log at the same time.
        while await reader.read_log() is not None:
            await asyncio.sleep(0)
        return busy.id, task.id

    async def status(self, workspace_id: str, task_id: str) -> Any:
        (delivery,) = await self.webhooks.list_deliveries(workspace_id, task_id)
        return delivery


@pytest.fixture
async def bench(pool: Pool) -> AsyncIterator[Delivering]:
    with ExitStack() as receivers:
        store = PostgresStore(pool, lambda: NOW)
        yield Delivering(pool, store, PostgresWebhooks(pool), receivers)


async def test_an_event_that_fails_holds_back_the_later_ones_of_its_task(bench: Delivering) -> None:
    _, receiver = await bench.receiver()
    refused, other = await bench.end_task(), await bench.end_task()

    async def answer(writer: asyncio.StreamWriter) -> bool:
        is_refused = receiver.requests[-1].event["task_id"] == refused[1] and bench.now == NOW
        return await (refuse("500 Internal Server Error") if is_refused else accept)(writer)

    receiver.behaviour = answer
    async with bench.delivering() as deliverer:
        await eventually_async(lambda: len(receiver.events()) == 3, LIMIT_SECONDS)
        assert [each["type"] for each in receiver.events(refused[1])] == ["task_submitted"]
        assert len(receiver.events(other[1])) == 2

        async def has_failed() -> bool:
            return bool((await bench.status(*refused)).attempts == 1)

        await eventually_async(has_failed, LIMIT_SECONDS)
        bench.now += timedelta(seconds=6)
        deliverer.wake()
        await eventually_async(lambda: len(receiver.events()) == 5, LIMIT_SECONDS)
    types = [each["type"] for each in receiver.events(refused[1])]
    assert types == ["task_submitted", "task_submitted", "task_completed"]
    ids = [request.headers["webhook-id"] for request in receiver.requests]
    assert len(set(ids)) == 4


async def test_a_process_of_a_later_version_sends_an_event_of_a_new_type(bench: Delivering) -> None:
    _, receiver = await bench.receiver(event_types=[*TYPES, "of_a_later_version"])
    workspace_id, task_id = await bench.end_task()

    async def rename(old: str, new: str) -> None:
        async with bench.pool.connection() as connection:
            await connection.execute(
                "UPDATE events SET type = %s WHERE task_id = %s AND type = %s", (new, task_id, old)
            )

    async def has_failed() -> bool:
        return "later version" in (await bench.status(workspace_id, task_id)).last_error

    await rename("task_completed", "of_a_later_version")
    async with bench.delivering():
        await eventually_async(has_failed, LIMIT_SECONDS)
    assert [each["type"] for each in receiver.events()] == ["task_submitted"]
    assert (await bench.status(workspace_id, task_id)).attempts == 0
    await rename("of_a_later_version", "task_completed")
    bench.now += timedelta(minutes=1)
    async with bench.delivering():
        await eventually_async(lambda: len(receiver.events()) == 2, LIMIT_SECONDS)


async def test_a_task_with_more_events_than_a_claim_takes_delivers_all_in_order(
    bench: Delivering,
) -> None:
    types = [EventType.ITERATION_COMPLETED, EventType.TASK_COMPLETED]
    _, receiver = await bench.receiver(event_types=types)
    busy, task = await with_task(bench.store)
    iterations = [iteration(number) for number in range(1, 11)]
    await bench.store.transition(
        busy.id,
        lambda locked: commit(locked, busy.epoch, task.id, [TaskStarted(), *iterations], NOW),
    )
    await complete(bench.store, busy, task.id)
    async with bench.delivering():
        await eventually_async(lambda: len(receiver.events()) >= 11, LIMIT_SECONDS)
    seqs = [int(each["seq"]) for each in receiver.events()]
    assert seqs == list(range(seqs[0], seqs[0] + 11))


async def test_what_is_recorded_is_delivered_although_the_log_cannot_be_read(
    bench: Delivering, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, receiver = await bench.receiver()
    _, task_id = await bench.end_task()
    refused = AsyncMock(side_effect=UnavailableError("a lock was not free"))
    monkeypatch.setattr(WebhookDeliveries, "read_log", refused)
    async with bench.delivering():
        await eventually_async(lambda: len(receiver.events(task_id)) == 2, LIMIT_SECONDS)


async def test_a_delivery_fails_after_a_day(bench: Delivering) -> None:
    webhook, receiver = await bench.receiver()
    receiver.behaviour = refuse("503 Service Unavailable")
    ended = await bench.end_task()

    async def has_status(wanted: str, attempts: int) -> bool:
        delivery = await bench.status(*ended)
        return (delivery.status, delivery.attempts) == (wanted, attempts)

    async with bench.delivering() as deliverer:
        await eventually_async(lambda: has_status("pending", 1), LIMIT_SECONDS)
        bench.now += timedelta(hours=23)
        deliverer.wake()
        await eventually_async(lambda: has_status("pending", 2), LIMIT_SECONDS)
        bench.now += timedelta(hours=2)
        deliverer.wake()
        await eventually_async(lambda: has_status("failed", 3), LIMIT_SECONDS)
        receiver.behaviour = accept
        assert await bench.webhooks.replay(permission(), webhook.id, None, bench.now) == (1, 0)
        deliverer.wake()
        await eventually_async(lambda: has_status("delivered", 0), LIMIT_SECONDS)
        await eventually_async(lambda: sum(each.delivered for each in bench.counts) == 2)
    assert sum(each.failed_attempts for each in bench.counts) == 3
    assert sum(each.given_up for each in bench.counts) == 1


async def test_a_slow_receiver_delays_no_other(bench: Delivering) -> None:
    """The slow receiver answers only once the quick one has received everything."""
    _, slow = await bench.receiver()
    _, quick = await bench.receiver()
    others_are_done = threading.Event()

    async def answer(writer: asyncio.StreamWriter) -> bool:
        await asyncio.to_thread(others_are_done.wait, LIMIT_SECONDS)
        return await accept(writer)

    slow.behaviour = answer
    ended = [await bench.end_task() for _ in range(30)]
    try:
        async with bench.delivering():
            await eventually_async(lambda: quick.accepted == 60, LIMIT_SECONDS)
            assert slow.accepted == 0
            others_are_done.set()
            await eventually_async(lambda: slow.accepted >= 60, LIMIT_SECONDS)
    finally:
        others_are_done.set()
    for _, task_id in ended:
        for receiver in (slow, quick):
            seqs = [int(each["seq"]) for each in receiver.events(task_id)]
            assert seqs == sorted(seqs)


async def test_thousands_of_receivers_that_are_down_delay_no_other(bench: Delivering) -> None:
    """A round of claims looks at 800 receivers. The next round follows soon, not 2 s later."""
    async with bench.pool.connection() as connection:
        await connection.execute(
            "INSERT INTO webhook_deliveries (workspace_id, task_id, webhook_id, org_id, receiver, "
            "delivered_seq, last_seq, due_at, pending_since) SELECT 'ws', 'task', 'wh_' || n, "
            "'org_0', 'https://' || n, 0, 1, %s, %s FROM generate_series(1, 15000) AS n",
            (NOW + timedelta(hours=1), NOW),
        )
    _, receiver = await bench.receiver()
    await bench.end_task()
    async with bench.delivering():
        await eventually_async(lambda: receiver.requests, 20.0)


async def test_names_that_nobody_resolves_leave_threads_to_other_organizations(
    bench: Delivering, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many unresolved names of one organization do not delay the name of another one."""
    resolve, asked, can_end = socket.getaddrinfo, list[str](), threading.Event()

    def getaddrinfo(host: str, *arguments: Any) -> Any:
        if not host.startswith("silent"):
            return resolve(host, *arguments)
        asked.append(host)
        can_end.wait(LIMIT_SECONDS)
        raise socket.gaierror(socket.EAI_AGAIN, "no server has answered")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    for number in range(_DNS_THREADS + 1):
        await bench.webhook(url=f"https://silent-{number}.example/")
    receiver = bench.receivers.enter_context(receiving())
    await bench.webhook(url=f"http://localhost:{receiver.port}/", org_id="org_b")
    await bench.end_task()
    try:
        async with bench.delivering() as deliverer:
            await eventually_async(lambda: len(asked) == MAX_RECEIVERS_OF_ORG, LIMIT_SECONDS)
            await bench.end_task("org_b")
            deliverer.wake()
            await eventually_async(lambda: receiver.accepted == 2, LIMIT_SECONDS)
            assert not can_end.is_set()
    finally:
        can_end.set()


async def test_a_receiver_that_is_gone_gets_no_further_request(bench: Delivering) -> None:
    """Only requests that are in flight at the refusal still arrive."""
    _, receiver = await bench.receiver()
    receiver.behaviour = refuse("410 Gone")
    ended = [await bench.end_task() for _ in range(12)]

    async def all_have_failed() -> bool:
        # Deliveries that were given back are due a little later.
        bench.now += timedelta(seconds=1)
        deliverer.wake()
        statuses = [(await bench.status(*each)).status for each in ended]
        return set(statuses) == {"failed"}

    async with bench.delivering() as deliverer:
        await eventually_async(lambda: receiver.requests, LIMIT_SECONDS)
        await eventually_async(all_have_failed, LIMIT_SECONDS)
    assert len(receiver.requests) <= 8


async def test_both_secrets_sign_until_the_previous_one_expires(bench: Delivering) -> None:
    webhook, receiver = await bench.receiver(event_types=[EventType.TASK_COMPLETED])
    new = SEALING.seal(b"1" * 32, webhook.id)
    day = NOW + timedelta(hours=24)
    await bench.webhooks.rotate_secret(permission(), webhook.id, new, NOW, day)
    async with bench.delivering() as deliverer:
        ended = await bench.end_task()
        deliverer.wake()

        async def is_recorded() -> bool:
            return bool((await bench.status(*ended)).status == "delivered")

        await eventually_async(is_recorded, LIMIT_SECONDS)
        bench.now += timedelta(hours=25)
        await bench.end_task()
        deliverer.wake()
        await eventually_async(lambda: len(receiver.requests) == 2, LIMIT_SECONDS)
    signatures = [each.headers["webhook-signature"].split(" ") for each in receiver.requests]
    assert [len(each) for each in signatures] == [2, 1]


async def test_a_process_without_the_key_leaves_the_delivery_to_others(bench: Delivering) -> None:
    _, receiver = await bench.receiver(event_types=[EventType.TASK_COMPLETED])
    ended = await bench.end_task()
    async with bench.delivering("without", SigningKeySealing(new_key())):

        async def is_claimed() -> bool:
            return bool((await bench.status(*ended)).next_attempt_at > bench.now)

        await eventually_async(is_claimed, LIMIT_SECONDS)
    assert not receiver.requests
    bench.now += timedelta(seconds=61)
    async with bench.delivering("with"):
        await eventually_async(lambda: receiver.requests, LIMIT_SECONDS)


async def test_all_webhooks_are_sealed_with_a_new_key_at_once(bench: Delivering) -> None:
    """There are more webhooks than one call handles. The next round of upkeep is a minute later."""
    for _ in range(101):
        await bench.webhook(url="http://127.0.0.1:1/")
    sealing = SigningKeySealing(with_new_key(KEY))

    async def are_sealed() -> bool:
        found = await bench.webhooks.list_webhooks(ORG)
        return all(each.sealed_secret.startswith(sealing.key_id) for each in found)

    assert not await are_sealed()
    async with bench.delivering(sealing=sealing):
        await eventually_async(are_sealed, 40)
