"""Callers watch the log of a workspace through Envoy."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import grpc
from evershell.workspace.v1 import workspace_service_pb2, workspace_service_pb2_grpc

from evershell.client import Client, IterationCompleted, TaskCompleted
from tests.support.stack import Stack, Workspace


def test_a_stream_on_each_worker_has_the_events_of_all_workers(
    stack: Stack, workspace: Workspace
) -> None:
    def watched(address: str) -> list[int]:
        with Client(address, stack.tokens["full_access"]) as client:
            seqs = []
            for event in client.watch(workspace.id, timeout=20):
                seqs.append(event.seq)
                if isinstance(event.payload, TaskCompleted):
                    break
            return seqs

    with ThreadPoolExecutor(2) as pool:
        watching = [pool.submit(watched, address) for address in stack.worker_addresses()]
        workspace.await_end(workspace.submit("true", "true", "true"))
        seqs = [each.result() for each in watching]
    assert seqs[0] == seqs[1] == list(range(1, seqs[0][-1] + 1))


def test_the_last_events_are_listed_in_pages(stack: Stack, workspace: Workspace) -> None:
    workspace.await_end(workspace.submit("echo some output"))
    stream = islice(workspace.rest.events(workspace.id), len(workspace.log()))
    listed, before = list[Any](), "0"
    while not listed or before != "0":
        query = {"before": before, "page_size": 2}
        page = workspace.rest.get(f"{workspace.path}/events/list", params=query)
        listed += page["events"]
        before = page["next_before"]
    assert listed[::-1] == [message["event"] for message in stream]
    with Client(stack.ready["grpc_addr"], stack.tokens["read_only"]) as client:
        last = client.list_events(workspace.id, omit_outputs=True)
        (first,) = client.list_events(workspace.id, before=2, page_size=1)
    assert [str(event.seq) for event in last] == [event["seq"] for event in listed]
    assert last[-1] == first
    (iteration,) = [each.payload for each in last if isinstance(each.payload, IterationCompleted)]
    assert iteration.tool_call is not None and iteration.tool_call.result.output == ""


async def test_an_event_costs_the_database_the_same_however_many_watch(
    stack: Stack, workspace: Workspace
) -> None:
    follow, wait = 20, 200
    last_seq = workspace.log()[-1]["seq"]
    request = workspace_service_pb2.WatchEventsRequest
    metadata = (("authorization", f"Bearer {stack.tokens['read_only']}"),)
    async with grpc.aio.insecure_channel(stack.worker_addresses()[0]) as channel:
        stub: Any = workspace_service_pb2_grpc.WorkspaceServiceStub(channel)

        def watch(after: int) -> Any:
            return stub.WatchEvents(
                request(workspace_id=workspace.id, after=after), metadata=metadata, timeout=120
            )

        following = [asyncio.create_task(_until_end(watch(0))) for _ in range(follow)]
        waiting = [watch(int(last_seq)) for _ in range(wait)]
        # The calls on a connection begin in order, so all watchers have begun once this call ends.
        await stub.GetWorkspace(
            workspace_service_pb2.GetWorkspaceRequest(workspace_id=workspace.id), metadata=metadata
        )
        before = _transactions(stack)
        task = await asyncio.to_thread(workspace.submit, *["true"] * 10)
        await asyncio.to_thread(workspace.await_end, task)
        seqs = await asyncio.gather(*following)
        made = _transactions(stack) - before
        assert not any(each.done() for each in waiting)
    assert all(each == list(range(1, seqs[0][-1] + 1)) for each in seqs)
    assert made < wait * 10


async def _until_end(messages: Any) -> list[int]:
    seqs = []
    async for message in messages:
        if message.HasField("event"):
            seqs.append(message.event.seq)
            if message.event.HasField("task_completed"):
                break
    return seqs


def _transactions(stack: Stack) -> int:
    with stack.database() as database:
        row = database.execute(
            "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
        ).fetchone()
    return int(row[0]) if row else 0
