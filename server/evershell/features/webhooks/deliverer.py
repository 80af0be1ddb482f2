"""Delivers events to webhooks: reads the log, claims due deliveries, sends their events.

Any number of processes may deliver at once. Each receiver has its own asyncio task, so a slow
receiver delays only its own deliveries.
"""

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from itertools import groupby
from typing import TypeAlias

import structlog

from evershell.core.errors import UnavailableError
from evershell.core.event import Event, EventType
from evershell.core.ports import Clock, Sealing
from evershell.features.parts import Payload
from evershell.features.webhooks.deliveries import (
    LEASE_SECONDS,
    MAX_OF_RECEIVER,
    MAX_RECEIVERS_OF_ORG,
    WebhookDeliveries,
)
from evershell.features.webhooks.headers import headers_of
from evershell.features.webhooks.rules import AttemptResult, ClaimedDelivery, DeliveryKey
from evershell.features.webhooks.sender import ATTEMPT_SECONDS, Answer, Sender
from evershell.store.batch import Batch

# The maximum number of concurrent requests of one process to a receiver.
_AT_ONCE = 8
# How often due deliveries (retries, for example) are claimed if nothing wakes the process.
_POLL_SECONDS = 2.0
_MAINTENANCE_SECONDS = 60.0
# Results are gathered for this long, so that many are recorded by one statement.
_GATHER_SECONDS = 0.1
# How long after a claim an attempt may begin, so that the attempt ends within the lease of the
# claim.
_BEGIN_SECONDS = LEASE_SECONDS - 2 * ATTEMPT_SECONDS
# Each claim looks at only some of the receivers, and each read at only some of the events. At most
# this many follow each other without a pause.
_MAX_ROUNDS = 4
# How often this process tries to record a result, whose row may be locked. After that, it drops the
# result, and the delivery is claimed and sent again.
_MAX_TRIES = 100
GIVE_UP_AFTER = timedelta(hours=24)
_FIRST_RETRY_SECONDS, _RETRY_FACTOR, _MAX_RETRY_SECONDS = 5.0, 3.0, 3_600.0
# Caps the exponent: at this value, the pause exceeds _MAX_RETRY_SECONDS.
_MAX_EXPONENT = 7

# The error of a delivery that was claimed but not sent.
_HELD_BACK = "not sent, because other requests to the receiver failed or took too long"

_Receiver: TypeAlias = tuple[str, str]
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Counts:
    """The counts since the last report."""

    delivered: int = 0
    failed_attempts: int = 0
    # The number of deliveries that the process has given up.
    given_up: int = 0


class Deliverer:
    """Delivers events to webhooks until `run` is cancelled."""

    def __init__(
        self,
        deliveries: WebhookDeliveries,
        sender: Sender,
        sealing: Sealing,
        payloads: Mapping[str, Payload],
        clock: Clock,
        report: Callable[[Counts], None] = lambda _: None,
        utc_seconds: Callable[[], float] = time.time,
    ) -> None:
        self._deliveries = deliveries
        self._sender = sender
        self._sealing = sealing
        self._payloads = payloads
        self._clock = clock
        self._report = report
        self._utc_seconds = utc_seconds
        self._woken = asyncio.Event()
        # The receivers that this process is sending to.
        self._busy: dict[_Receiver, asyncio.Task[None]] = {}
        self._results: Batch[AttemptResult, None] = Batch(
            self._record, at_most=1_000, gather_seconds=_GATHER_SECONDS
        )
        # For each result that could not be recorded yet, the number of tries.
        self._tries: Counter[DeliveryKey] = Counter()
        self._counts: Counter[str] = Counter()

    def wake(self) -> None:
        """Claims what is due now, without waiting for the next poll."""
        self._woken.set()

    async def run(self) -> None:
        """Runs until it is cancelled."""
        try:
            await self._claim_all()
        finally:
            for task in self._busy.values():
                task.cancel()
            await self._results.drained()

    async def _claim_all(self) -> None:
        maintained_at = -_MAINTENANCE_SECONDS
        # The id after which the next call of `reseal` begins; None if there is no further call
        # until the next maintenance.
        after_id: str | None = None
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_POLL_SECONDS):
                    await self._woken.wait()
            self._woken.clear()
            try:
                for _ in range(_MAX_ROUNDS):
                    pause = await self._read_log()
                    if await self._claim() and pause != 0.0:
                        break
                else:
                    pause = _GATHER_SECONDS
                if pause is not None:
                    asyncio.get_running_loop().call_later(pause, self.wake)
                now = asyncio.get_running_loop().time()
                if now - maintained_at >= _MAINTENANCE_SECONDS:
                    maintained_at, after_id = now, after_id or ""
                    await self._deliveries.prune()
                if after_id is not None:
                    key_id = self._sealing.key_id
                    after_id = await self._deliveries.reseal(key_id, self._seal_again, after_id)
                if after_id is not None:
                    self.wake()
            except UnavailableError as error:
                _log.warning("webhooks_not_claimed", error=str(error).strip())
                await asyncio.sleep(_POLL_SECONDS)

    def _seal_again(self, sealed: bytes, owner: str) -> bytes:
        return self._sealing.seal(self._sealing.open(sealed, owner), owner)

    async def _read_log(self) -> float | None:
        """Like WebhookDeliveries.read_log. If it fails, what is recorded is still delivered."""
        try:
            return await self._deliveries.read_log()
        except UnavailableError as error:
            _log.warning("webhooks_log_not_read", error=str(error).strip())
            return _POLL_SECONDS

    async def _claim(self) -> bool:
        """Claims due deliveries. Returns whether the claim has reached the last receiver."""
        of_orgs = Counter(org_id for org_id, _ in self._busy)
        full = [org_id for org_id, count in of_orgs.items() if count >= MAX_RECEIVERS_OF_ORG]
        claimed = await self._deliveries.claim(list(self._busy), full)
        by_receiver = sorted(claimed.deliveries, key=_receiver_of)
        for receiver, deliveries in groupby(by_receiver, key=_receiver_of):
            batch = _Batch(list(deliveries), self)
            task = asyncio.create_task(batch.run(), name="webhooks-batch")
            self._busy[receiver] = task
            task.add_done_callback(partial(self._done, receiver, batch))
        if claimed.has_removed:
            self.wake()
        return claimed.has_wrapped

    def _done(self, receiver: _Receiver, batch: "_Batch", task: asyncio.Task[None]) -> None:
        del self._busy[receiver]
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("webhooks_batch_failed", exc_info=error)
        if batch.is_full:
            self.wake()

    def put(self, result: AttemptResult) -> None:
        """Records the result soon."""
        self._results.put(result, result.key)

    async def _record(self, results: Sequence[AttemptResult]) -> None:
        try:
            recorded = await self._deliveries.record(results)
        except UnavailableError as error:
            _log.warning("webhooks_not_recorded", error=str(error).strip())
            raise
        if recorded.has_more:
            self.wake()
        for result in results:
            if result.key in recorded.keys:
                del self._tries[result.key]
                continue
            self._tries[result.key] += 1
            if self._tries[result.key] < _MAX_TRIES:
                self.put(result)
            else:
                del self._tries[result.key]
        self._report(self._taken_counts())

    def _taken_counts(self) -> Counts:
        counts, self._counts = Counts(**self._counts), Counter()
        return counts

    async def attempt(
        self, delivery: ClaimedDelivery, ends_at: float
    ) -> tuple[AttemptResult, bool]:
        """Sends the next events in order, until one fails.

        Returns the result, and whether further requests to the receiver are likely to fail now.
        """
        if delivery.webhook.disabled_at is not None:
            return _not_attempted(delivery, "the webhook is disabled", None), False
        result = AttemptResult(key=delivery.key, delivered_seq=delivery.delivered_seq)
        if not delivery.events:
            return self._failed(delivery, result, Answer("the events were removed")), False
        for seq, claimed in delivery.events:
            if asyncio.get_running_loop().time() >= ends_at:
                break
            event = claimed or await self._deliveries.read_event(delivery.key.workspace_id, seq)
            if event is None:
                answer = Answer("the event was removed")
            elif event.type is EventType.UNSPECIFIED:
                # During an upgrade, an event may have a type that only a later version knows. A
                # process of that version sends the event.
                retry_at = self._clock() + timedelta(seconds=_jittered(_FIRST_RETRY_SECONDS))
                left = _not_attempted(delivery, "the event has a type of a later version", retry_at)
                return replace(left, delivered_seq=result.delivered_seq), False
            else:
                answer = await self._send(delivery, event)
            if answer.error:
                return self._failed(delivery, result, answer), answer.is_down
            self._counts["delivered"] += 1
            result = replace(result, delivered_seq=seq)
        return result, False

    async def _send(self, delivery: ClaimedDelivery, event: Event) -> Answer:
        webhook = delivery.webhook
        payload = self._payloads.get(webhook.payload_form)
        if payload is None:
            return Answer(f"the service has no bodies of the form {webhook.payload_form}")
        content_type, body = payload(event)
        now, utc_seconds = self._clock(), self._utc_seconds()
        headers = headers_of(webhook, event, content_type, body, self._sealing, now, utc_seconds)
        return await self._sender.send(webhook.url, headers, body)

    def _failed(
        self, delivery: ClaimedDelivery, result: AttemptResult, answer: Answer
    ) -> AttemptResult:
        """The result of an attempt that failed, perhaps after some events were delivered."""
        now = self._clock()
        # If this attempt delivered earlier events, the failed event was not attempted before.
        is_first = result.delivered_seq != delivery.delivered_seq
        attempts = 1 if is_first else delivery.attempts + 1
        pending_since = now if is_first else delivery.pending_since
        gives_up = answer.is_gone or now - pending_since >= GIVE_UP_AFTER
        self._counts["failed_attempts"] += 1
        self._counts["given_up"] += gives_up
        if gives_up:
            _log.warning(
                "webhook_delivery_failed",
                webhook_id=delivery.key.webhook_id,
                workspace_id=delivery.key.workspace_id,
                task_id=delivery.key.task_id,
                error=answer.error,
            )
        return replace(
            result,
            attempts=attempts,
            error=answer.error,
            retry_at=None if gives_up else _retry_at(now, attempts, answer.retry_after_seconds),
            disables_webhook=answer.is_gone,
        )

    def give_back(self, delivery: ClaimedDelivery) -> None:
        """Releases a delivery that was not attempted. It is due again after about 5 s."""
        retry_at = self._clock() + timedelta(seconds=_jittered(_FIRST_RETRY_SECONDS))
        self.put(_not_attempted(delivery, _HELD_BACK, retry_at))


class _Batch:
    """The claimed deliveries of one receiver."""

    def __init__(self, deliveries: Sequence[ClaimedDelivery], deliverer: Deliverer) -> None:
        self.is_full = len(deliveries) >= MAX_OF_RECEIVER
        self._left = deque(deliveries)
        self._deliverer = deliverer
        self._is_down = False

    async def run(self) -> None:
        ends_at = asyncio.get_running_loop().time() + _BEGIN_SECONDS
        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(_AT_ONCE, len(self._left))):
                tasks.create_task(self._send_some(ends_at))
        for delivery in self._left:
            self._deliverer.give_back(delivery)

    async def _send_some(self, ends_at: float) -> None:
        loop = asyncio.get_running_loop()
        while self._left and not self._is_down and loop.time() < ends_at:
            delivery = self._left.popleft()
            try:
                result, is_down = await self._deliverer.attempt(delivery, ends_at)
            except UnavailableError as error:
                # The database does not answer, or this process does not have the key with which the
                # secret was sealed. When the lease has ended, the delivery is claimed again.
                _log.warning("webhook_not_sent", error=str(error).strip())
                continue
            self._is_down = self._is_down or is_down
            self._deliverer.put(result)


def _receiver_of(delivery: ClaimedDelivery) -> _Receiver:
    return (delivery.webhook.org_id, delivery.webhook.receiver)


def _not_attempted(
    delivery: ClaimedDelivery, error: str, retry_at: datetime | None
) -> AttemptResult:
    return AttemptResult(
        key=delivery.key,
        delivered_seq=delivery.delivered_seq,
        attempts=delivery.attempts,
        error=error,
        retry_at=retry_at,
        attempted=False,
    )


def _retry_at(now: datetime, attempts: int, at_least_seconds: float) -> datetime:
    pause = _FIRST_RETRY_SECONDS * _RETRY_FACTOR ** min(attempts - 1, _MAX_EXPONENT)
    pause = max(min(pause, _MAX_RETRY_SECONDS), at_least_seconds)
    return now + timedelta(seconds=_jittered(pause))


def _jittered(seconds: float) -> float:
    """Adds up to a fifth, so that retries do not all come at once."""
    return seconds * random.uniform(1.0, 1.2)  # noqa: S311
