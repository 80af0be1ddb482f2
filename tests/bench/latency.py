"""`make bench`: compares a cancellation by one caller with an empty call on the same server.

Every round starts one task for each row and measures the rows in turn, so that a machine whose
speed drifts favours no row. Each cancellation is complete: the call is authenticated, the intent
is committed and the agent is signalled.

It also measures how long an event takes to reach a watcher on the other worker, how long the end
of a task takes to reach a waiter there, and how long after the natural end of its last iteration
a cancelled task ends. Prints a table and writes bench.json.
"""

import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from server.client import WorkspaceClient
from tests.support.stack import Stack, Workspace

ROUNDS = 60
CANCELLATIONS = 200
FLOOR = "empty unary RPC, worker"


def main() -> None:
    """Starts a stack and measures. It takes up to five minutes."""
    with tempfile.TemporaryDirectory() as folder:
        stack = Stack(Path(folder) / "state", LOG_LEVEL="WARNING")
        stack.start()
        try:
            figures = measure(stack)
            arrivals = measure_arrivals(stack) | {
                "from the tool's end to the task's": measure_ends(stack)
            }
            memory = {program: memory_mb(stack.pids(program)) for program in ("serve", "fleet")}
            memory["agent"] = memory_mb([stack.agent_pid(stack.ready["demo"]["workspace_id"])])
        finally:
            stack.kill_if_running()
    show(figures, arrivals, memory)


def measure(stack: Stack) -> dict[str, list[float]]:
    """Returns the seconds of each row, one figure for each round."""
    worker = stack.worker_addresses()[0]
    health = health_pb2_grpc.HealthStub(grpc.insecure_channel(worker))
    workspaces = {
        name: Workspace(stack)
        for name in ("gRPC, worker", "gRPC, through the edge", "REST, through the edge")
    }
    grpc_worker, grpc_edge, rest = stack.grpc(address=worker), stack.grpc(), stack.rest()
    ids = {name: workspace.id for name, workspace in workspaces.items()}
    rows: dict[str, Callable[[], object]] = {
        FLOOR: lambda: health.Check(health_pb2.HealthCheckRequest()),
        "gRPC, worker": lambda: grpc_worker.call("CancelTask", workspace_id=ids["gRPC, worker"]),
        "gRPC, through the edge": lambda: grpc_edge.call(
            "CancelTask", workspace_id=ids["gRPC, through the edge"]
        ),
        "REST, through the edge": lambda: rest.post(
            f"/v1/workspaces/{ids['REST, through the edge']}/task/cancel"
        ),
    }
    figures: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(ROUNDS):
        tasks = {
            name: workspace.submit("sleep 0.5", "sleep 0.5")
            for name, workspace in workspaces.items()
        }
        for name, workspace in workspaces.items():
            workspace.await_phase(tasks[name], "tool_call")
        for name, call in rows.items():
            # Not measured: wakes the processor, so that every row starts under the same conditions.
            rows[FLOOR]()
            began = time.perf_counter()
            answer = call()
            figures[name].append(time.perf_counter() - began)
            assert not isinstance(answer, dict) or answer["outcome"] == "accepted", answer
        for name, workspace in workspaces.items():
            assert workspace.await_end(tasks[name])["status"] == "cancelled"
    return figures


def measure_arrivals(stack: Stack) -> dict[str, list[float]]:
    """Returns, for each row, the seconds from the time of an event to its arrival at a client.

    The time of an event or an end is taken just before its commit.
    """
    first, other = stack.worker_addresses()
    workspace = Workspace(stack)
    canceller, waiter = stack.grpc(address=first), stack.grpc(address=other)
    figures: dict[str, list[float]] = {
        "an event at another worker's watcher": [],
        "the end at another worker's waiter": [],
    }
    with ThreadPoolExecutor(2) as pool:
        for _ in range(ROUNDS):
            task_id = workspace.submit("sleep 0.2", "sleep 0.2")
            watching = pool.submit(
                arrival, stack, other, workspace.id, task_id, after=workspace.log()[-1]["seq"]
            )
            workspace.await_phase(task_id, "tool_call")
            canceller.call("CancelTask", workspace_id=workspace.id)
            figures["an event at another worker's watcher"].append(watching.result())
            ended = waiter.call(
                "CancelTask", workspace_id=workspace.id, task_id=task_id, wait={"seconds": 30}
            )
            figures["the end at another worker's waiter"].append(
                time.time() - seconds_of(ended["task"]["completed_at"])
            )
    return figures


def measure_ends(stack: Stack) -> list[float]:
    """Returns the seconds from the natural end of a cancelled iteration to its terminal event.

    The tool call prints the time of the natural end.
    """
    workspace = Workspace(stack)
    figures = []
    for _ in range(CANCELLATIONS):
        task_id = workspace.submit(*["sleep 0.2; date +%s.%N"] * 5)
        workspace.await_phase(task_id, "tool_call")
        workspace.cancel()
        end = workspace.await_event("task_completed", task_id)
        assert end["task_completed"]["status"] == "cancelled"
        figures.append(seconds_of(end["time"]) - float(end["task_completed"]["result"]))
    return figures


def arrival(stack: Stack, address: str, workspace_id: str, task_id: str, after: int) -> float:
    """Watches for the cancellation of the task, and returns its delay in seconds."""
    with WorkspaceClient(address, stack.tokens["full_access"]) as client:
        for event in client.watch_events(workspace_id, after):
            if event.task_id == task_id and event.HasField("task_cancel_requested"):
                return time.time() - event.time.ToNanoseconds() / 1e9
    raise AssertionError("the stream ended")


def seconds_of(moment: str) -> float:
    """Converts a time in JSON to seconds since 1970."""
    return datetime.fromisoformat(moment).timestamp()


def memory_mb(pids: list[int]) -> float:
    """The largest resident set of these processes, in MiB."""
    return max(psutil.Process(pid).memory_info().rss for pid in pids) / 2**20


def show(
    figures: dict[str, list[float]], arrivals: dict[str, list[float]], memory: dict[str, float]
) -> None:
    """Prints the table and writes bench.json."""
    latency = {
        name: {**summary(seconds), "ratio": ratio(seconds, figures[FLOOR])}
        for name, seconds in figures.items()
    }
    late = {name: summary(seconds) for name, seconds in arrivals.items()}
    lines = [f"{'CancelTask at one caller':28} runs  p50 ms     min     p99     max  ÷ empty"]
    lines += [f"{name:28} {columns(row)} {row['ratio']:8.2f}" for name, row in latency.items()]
    lines += ["", f"{'Delay':38} runs  p50 ms     min     p99     max"]
    lines += [f"{name:38} {columns(row)}" for name, row in late.items()]
    lines += [
        "",
        *(f"memory of one {program}: {megabytes:.0f} MB" for program, megabytes in memory.items()),
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    Path("bench.json").write_text(
        json.dumps({"cancel": latency, "arrival": late, "memory_mb": memory}, indent=2)
    )


def summary(seconds: list[float]) -> dict[str, float]:
    """Returns the number of runs, and their median, minimum, p99 and maximum in milliseconds."""
    ordered = sorted(each * 1000 for each in seconds)
    p99 = ordered[math.ceil(len(ordered) * 0.99) - 1]
    return {
        "runs": len(ordered),
        "p50": statistics.median(ordered),
        "min": ordered[0],
        "p99": p99,
        "max": ordered[-1],
    }


def ratio(seconds: list[float], floor: list[float]) -> float:
    """Returns the median of the ratios of `seconds` to `floor`, round by round."""
    return statistics.median(each / empty for each, empty in zip(seconds, floor, strict=True))


def columns(row: dict[str, float]) -> str:
    """Formats the columns below the header of the table."""
    figures = " ".join(f"{row[name]:7.2f}" for name in ("p50", "min", "p99", "max"))
    return f"{row['runs']:4.0f} {figures}"


if __name__ == "__main__":
    main()
