"""Ends many tasks, and says which events the receivers of webhooks must get."""

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
from evershell.agent.v1 import runtime_service_pb2 as messages
from evershell.agent.v1 import runtime_service_pb2_grpc
from evershell.workspace.v1.task_pb2 import Task

from bench.arming import arm
from evershell.auth.pod_tokens import PodTokens
from tests.faults.long.attacks.hostile_agent import iterated
from tests.support.receivers import Receiver
from tests.support.runtime_tokens import runtime_token
from tests.support.stack import Stack
from tests.support.wires import OVERLOADED_SECONDS

# The types of the events with which a task ends. The agent commits them in one transaction.
TYPES = ["iteration_completed", "task_completed"]
# The calls all begin at once, so the last commit waits for all others.
_CALL_SECONDS = 300.0
_EPOCH = 1


@dataclass(frozen=True, slots=True, order=True)
class EventKey:
    """Identifies an event of a task."""

    task_id: str
    seq: int


def end(stack: Stack, count: int) -> set[EventKey]:
    """Ends `count` running tasks as their agents would. Returns the events of these ends."""
    tokens = PodTokens((stack.state_dir / "control-plane.jwk").read_text())
    with stack.database() as database:
        # The agents' address is not used: no task is cancelled, so no agent gets a signal.
        tasks = arm(database, count, ["127.0.0.1:9"])
    channels = [grpc.insecure_channel(address) for address in stack.worker_addresses()]
    stubs = [runtime_service_pb2_grpc.RuntimeServiceStub(each) for each in channels]

    def commit(number: int, workspace_id: str) -> Any:
        request = messages.CommitEventsRequest(
            task_id=tasks.task_id(workspace_id), events=list(_events())
        )
        token = runtime_token(tokens, workspace_id, _EPOCH)
        return stubs[number % len(stubs)].CommitEvents.future(
            request,
            metadata=(("authorization", f"Bearer {token}"),),
            timeout=_CALL_SECONDS,
            wait_for_ready=True,
        )

    left = list(enumerate(tasks.workspace_ids))
    while left:
        calls = {each: commit(*each) for each in left}
        left = []
        for each, call in calls.items():
            # A busy worker has refused the call, or its gRPC library has cancelled the call before
            # the worker could begin it. An agent would repeat such a call too.
            if call.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                left.append(each)
            else:
                call.result()
        time.sleep(OVERLOADED_SECONDS if left else 0)
    for channel in channels:
        channel.close()
    # Each running task already had three events.
    return {
        EventKey(tasks.task_id(workspace_id), seq)
        for workspace_id in tasks.workspace_ids
        for seq in (4, 5)
    }


def _events() -> Iterator[messages.TaskEvent]:
    yield iterated(1)
    ended = messages.TaskEvent()
    ended.task_ended.status = Task.completed
    yield ended


def accepted(receiver: Receiver) -> set[EventKey]:
    """Returns the events that the receiver has accepted."""
    return {event_of(each.body) for each in list(receiver.requests) if each.accepted}


def has_all(receiver: Receiver, ended: set[EventKey]) -> bool:
    """Whether the receiver has accepted exactly these events.

    Counts first, because that is cheap.
    """
    return receiver.accepted >= len(ended) and accepted(receiver) == ended


def disorder(receiver: Receiver) -> list[EventKey]:
    """Returns the events that arrived before the previous event of their task was accepted."""
    seqs: dict[str, set[int]] = defaultdict(lambda: {3})
    wrong = []
    for each in receiver.requests:
        event = event_of(each.body)
        if event.seq - 1 not in seqs[event.task_id]:
            wrong.append(event)
        if each.accepted:
            seqs[event.task_id].add(event.seq)
    return wrong


def webhook_ids(receiver: Receiver) -> dict[EventKey, set[str]]:
    """Returns, for each event, the `webhook-id` values of its requests."""
    ids: dict[EventKey, set[str]] = defaultdict(set)
    for each in receiver.requests:
        ids[event_of(each.body)].add(each.headers["webhook-id"])
    return ids


def event_of(body: bytes) -> EventKey:
    """Returns the event that a request delivers."""
    event = json.loads(body)
    return EventKey(event["task_id"], int(event["seq"]))
