"""Watching a workspace's log through Envoy."""

from concurrent.futures import ThreadPoolExecutor

from evershell.client import Client, TaskCompleted
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
