"""Many tasks that end, and the events that receivers must get."""

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

from evershell.auth.pod_tokens import PodTokens
from tests.bench.arming import arm
from tests.faults.long.attacks.hostile_agent import iterated
from tests.support.receivers import Receiver
from tests.support.runtime_tokens import runtime_token
from tests.support.stack import Stack
from tests.support.wires import OVERLOADED_SECONDS

# The events of each end, which its agent commits in one transaction.
TYPES = ["iteration_completed", "task_completed"]
# All commits begin together, and the last one waits for the others.
_CALL_SECONDS = 300.0
_EPOCH = 1


@dataclass(frozen=True, slots=True, order=True)
class EventKey:
    """An event of a task."""

    task_id: str
    seq: int


def end(stack: Stack, count: int) -> set[EventKey]:
    """Ends this many running tasks, as their agents do. Returns the events."""
    tokens = PodTokens((stack.state_dir / "control-plane.jwk").read_text())
    with stack.database() as database:
        # No signal is sent to the agents, because no task is cancelled.
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
            # A busy worker has refused it, and agents repeat it. gRPC's own retries are not used:
            # on a busy machine, calls that the worker had served ended with CANCELLED.
            if call.code() is grpc.StatusCode.UNAVAILABLE:
                left.append(each)
            else:
                call.result()
        time.sleep(OVERLOADED_SECONDS if left else 0)
    for channel in channels:
        channel.close()
    # A running task has had three events.
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
    """The events that the receiver has accepted."""
    return {event_of(each.body) for each in list(receiver.requests) if each.accepted}


def has_all(receiver: Receiver, ended: set[EventKey]) -> bool:
    """Whether the receiver has accepted exactly these events. Cheap as long as it has too few."""
    return receiver.accepted >= len(ended) and accepted(receiver) == ended


def disorder(receiver: Receiver) -> list[EventKey]:
    """The requests that came before the receiver had accepted an earlier event of their task."""
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
    """The values of `webhook-id` with which each event came."""
    ids: dict[EventKey, set[str]] = defaultdict(set)
    for each in receiver.requests:
        ids[event_of(each.body)].add(each.headers["webhook-id"])
    return ids


def event_of(body: bytes) -> EventKey:
    """The event of a request."""
    event = json.loads(body)
    return EventKey(event["task_id"], int(event["seq"]))
