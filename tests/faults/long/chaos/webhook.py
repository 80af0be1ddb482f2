"""A webhook of the organization. Its receiver fails now and then."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from evershell.histories.recorder import Recorder
from tests.faults.long.chaos.callers import Callers, Wire
from tests.support.receivers import Receiver, accept, fail_at_random

_ANSWER_SECONDS = 30.0
_TYPES = ("task_cancel_requested", "task_completed")
_FAILURES = 0.1
# From this attempt on, an event is accepted. The pause after the fourth failure is longer than the
# time that a run waits for deliveries.
_ACCEPTED_ATTEMPT = 3
_HOST = "127.0.0.1"


@asynccontextmanager
async def webhook(callers: Callers, recorder: Recorder) -> AsyncIterator[set[str]]:
    """Creates the webhook, and records the events that its receiver gets.

    Yields the ids of the tasks whose end the receiver has got. The set grows during the run.
    """
    ended, webhook_id = set[str](), ""
    answer, attempts = fail_at_random(_FAILURES), Counter[tuple[str, str]]()

    async def receive(writer: asyncio.StreamWriter) -> bool:
        event = receiver.requests[-1].event
        recorder.deliver(webhook_id, event)
        if event["type"] == "task_completed":
            ended.add(event["task_id"])
        attempts[event["workspace_id"], event["seq"]] += 1
        is_late = attempts[event["workspace_id"], event["seq"]] >= _ACCEPTED_ATTEMPT
        return await (accept if is_late else answer)(writer)

    receiver = Receiver(receive, _HOST)
    server = await asyncio.start_server(receiver.serve, _HOST, 0)
    receiver.port = server.sockets[0].getsockname()[1]
    fields = {"url": receiver.url, "event_types": _TYPES}
    created = await callers.call(Wire.REST, "CreateWebhook", _ANSWER_SECONDS, fields)
    webhook_id = created.body["webhook"]["id"]
    try:
        yield ended
    finally:
        server.close()
        for each in list(receiver.open):
            each.transport.abort()
