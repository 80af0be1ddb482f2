"""Compares the answers for a foreign workspace with those for a missing one, by time.

`python -m tests.bench.denials` starts a stack and calls it over gRPC through Envoy, as a caller of
another organization. Calls for foreign and missing workspaces alternate in random order, so that
both see the same machine. docs/threat-model.md has the figures of a run.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist, quantiles

import grpc
from evershell.workspace.v1 import workspace_service_pb2 as messages
from evershell.workspace.v1 import workspace_service_pb2_grpc
from rich.console import Console
from rich.table import Table

from evershell.core.ids import new_task_id, new_workspace_id
from tests.support.stack import Stack, Workspace

# Each workspace is asked for several times, as by an attacker who looks for a small difference.
WORKSPACES = 200
_WARM_UP = 200
# Copies of a workspace and its task. The fleet controller leaves stopped ones alone.
_FOREIGN = """
    WITH copied AS (
        INSERT INTO workspaces
        SELECT (jsonb_populate_record(w, jsonb_build_object(
            'id', new_id, 'status', 'stopped', 'agent_address', NULL, 'lease_expires_at', NULL
        ))).*
        FROM workspaces w, unnest(%(workspaces)s::text[]) AS made (new_id)
        WHERE w.id = %(workspace)s
    )
    INSERT INTO tasks
    SELECT (jsonb_populate_record(t, jsonb_build_object('id', new_id, 'workspace_id', parent))).*
    FROM tasks t, unnest(%(tasks)s::text[], %(workspaces)s::text[]) AS made (new_id, parent)
    WHERE t.workspace_id = %(workspace)s
"""
METHODS = ("CancelTask", "GetTask", "GetWorkspace")
KINDS = ("foreign", "missing")
Target = tuple[str, str]
Seconds = dict[str, list[float]]


def main() -> None:
    """Prints a table: the two distributions of each method, and whether they differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=5_000, help="for each method and each kind")
    calls = parser.parse_args().calls
    console = Console()
    with tempfile.TemporaryDirectory(prefix="denials-") as folder:
        stack = Stack(Path(folder) / "state")
        try:
            stack.start()
            targets = {kind: _targets(stack, exist=kind == "foreign") for kind in KINDS}
            with grpc.insecure_channel(stack.ready["grpc_addr"]) as channel:
                measured = _measure(channel, stack.tokens["other_org"], targets, calls)
        finally:
            stack.kill_if_running()
    console.print(_table(measured))


def _targets(stack: Stack, *, exist: bool) -> list[Target]:
    """Workspaces of the demo organization, or ids of none, each with a task."""
    made = [(new_workspace_id(), new_task_id()) for _ in range(WORKSPACES)]
    if exist:
        original = Workspace(stack, "owner")
        original.await_end(original.submit("true"))
        workspace_ids, task_ids = (list(ids) for ids in zip(*made, strict=True))
        facts = {"workspace": original.id, "workspaces": workspace_ids, "tasks": task_ids}
        with stack.database() as connection:
            connection.execute(_FOREIGN, facts)
            connection.execute("ANALYZE workspaces, tasks")
    return made


def _measure(
    channel: grpc.Channel, token: str, targets: dict[str, list[Target]], calls: int
) -> dict[str, Seconds]:
    """The times of the calls, in seconds, by method and kind."""
    stub = workspace_service_pb2_grpc.WorkspaceServiceStub(channel)
    metadata = (("authorization", f"Bearer {token}"),)
    measured: dict[str, Seconds] = {method: {kind: [] for kind in KINDS} for method in METHODS}
    choice = random.Random(1)
    for number in range(_WARM_UP + calls):
        for method in choice.sample(METHODS, len(METHODS)):
            for kind in choice.sample(KINDS, len(KINDS)):
                request = _request(method, *choice.choice(targets[kind]))
                call = getattr(stub, method)
                began = time.perf_counter()
                try:
                    call(request, metadata=metadata)
                except grpc.RpcError as error:
                    took = time.perf_counter() - began
                    assert isinstance(error, grpc.Call)
                    assert error.code() is grpc.StatusCode.NOT_FOUND, error
                if number >= _WARM_UP:
                    measured[method][kind].append(took)
    return measured


def _request(method: str, workspace_id: str, task_id: str) -> object:
    if method == "GetWorkspace":
        return messages.GetWorkspaceRequest(workspace_id=workspace_id)
    kind = getattr(messages, f"{method}Request")
    return kind(workspace_id=workspace_id, task_id=task_id)


def superiority(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """The Mann-Whitney test: whether values of `first` tend to be larger than those of `second`.

    Returns the share of pairs in which the first value is the larger one, and the two-sided p value
    by the normal approximation. 0.5 means no difference.
    """
    ordered = sorted([(value, True) for value in first] + [(value, False) for value in second])
    ranks = sum(rank for rank, (_, is_first) in enumerate(ordered, 1) if is_first)
    pairs = len(first) * len(second)
    larger = ranks - len(first) * (len(first) + 1) / 2
    deviation = (pairs * (len(first) + len(second) + 1) / 12) ** 0.5
    z = abs(larger - pairs / 2) / deviation
    return larger / pairs, 2 * (1 - NormalDist().cdf(z))


def _table(measured: dict[str, Seconds]) -> Table:
    table = Table()
    for title in ("method", "workspace", "calls", "p50 ms", "p90 ms", "p99 ms", "slower", "p"):
        table.add_column(title, justify="left" if title in ("method", "workspace") else "right")
    for method, seconds in measured.items():
        share, p = superiority(seconds["foreign"], seconds["missing"])
        for kind, verdict in (("foreign", (f"{share:.1%}", f"{p:.2f}")), ("missing", ("", ""))):
            cuts = quantiles(seconds[kind], n=100)
            times = [f"{cuts[at - 1] * 1000:.3f}" for at in (50, 90, 99)]
            table.add_row(method, kind, f"{len(seconds[kind]):,}", *times, *verdict)
    return table


if __name__ == "__main__":
    main()
