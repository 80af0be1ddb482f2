"""Callers watch all workspaces of an organization through Envoy, over REST and gRPC."""

import json
from collections.abc import Generator
from contextlib import closing
from typing import Any

from evershell.client import Client, EventType
from tests.support.stack import Gate, Stack, Workspace


def messages(stack: Stack, last_id: str = "") -> Generator[tuple[str, dict[str, Any]], None, None]:
    """The id and the content of each Server-Sent Event."""
    headers = {"last-event-id": last_id} if last_id else {}
    with stack.rest().client.stream("GET", "/v1/events", headers=headers) as response:
        assert response.status_code == 200, response.read()
        data = ""
        for line in response.iter_lines():
            name, _, value = line.partition(": ")
            if name == "data":
                data = value
            elif name == "id":
                yield value, json.loads(data)


def test_two_workspaces_are_followed_over_rest_and_grpc_and_the_stream_resumes(
    stack: Stack, workspace: Workspace, gate: Gate
) -> None:
    other = Workspace(stack)
    client = Client(stack.ready["grpc_addr"], stack.tokens["full_access"])
    with client, closing(messages(stack)) as rest, closing(client.watch_organization()) as rpc:
        _, heartbeat = next(rest)
        assert heartbeat.keys() == {"position", "heartbeat"}
        first = next(rpc)
        assert first.event is None
        tasks = {workspace.id: workspace.begin(gate.command), other.id: other.submit("true")}
        other.await_end(tasks[other.id])
        workspace.cancel()
        gate.open()
        workspace.await_end(tasks[workspace.id])

        by_rest: list[tuple[str, str, dict[str, Any]]] = []
        left = set(tasks)
        for id_, message in rest:
            event = message.get("event", {})
            if event.get("workspace_id") in tasks:
                by_rest.append((id_, event["type"], event))
                if event["type"] == "task_completed":
                    left.discard(event["workspace_id"])
            if not left:
                break
        positions = [int(id_) for id_, _, _ in by_rest]
        assert positions == sorted(set(positions))
        for each in (workspace, other):
            seqs = [
                int(event["seq"]) for _, _, event in by_rest if event["workspace_id"] == each.id
            ]
            # The workspace has had one event before the stream began.
            assert seqs == list(range(2, len(each.log()) + 1))
        of_cancelled = [kind for _, kind, e in by_rest if e["workspace_id"] == workspace.id]
        assert "task_cancel_requested" in of_cancelled
        assert by_rest[-1][2]["task_completed"]["status"] == "cancelled"

        by_rpc: list[int] = []
        while positions[-1] not in by_rpc:
            item = next(rpc)
            if item.event is not None and item.event.workspace_id in tasks:
                by_rpc.append(item.position)
        assert by_rpc == positions

        with closing(messages(stack, last_id=by_rest[0][0])) as resumed:
            again = []
            for id_, message in resumed:
                if message.get("event", {}).get("workspace_id") in tasks:
                    again.append(int(id_))
                if again == positions[1:]:
                    break
        with closing(client.watch_organization(after=positions[-2])) as last:
            item = next(last)
        assert item.event is not None and item.event.type is EventType.TASK_COMPLETED
