"""What workspaces on Kubernetes cost the controller and the API server, from 200 to 5,000.

    API_AUDIT_LOG=FILE .ci/with_api_server.sh FOLDER \\
        .venv/bin/python -m tests.bench.cluster_scale [WORKSPACES …]

FOLDER has the programs etcd and kube-apiserver. The cluster has no nodes: simulated ones run every
pod as soon as they see it, and its agent registers. Workspaces are created in bursts of _BURST,
over the public API, until there are enough. For each number, this measures

- how long the workspaces of the last burst took from CreateWorkspace until they were idle,
- how many calls of the controller the audit log of the API server has for each of them,
- the calls, the processor time and the memory of the controller while nothing happens.

Prints one JSON object a row, as `python -m tests.bench.idle_fleet` does.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench import processes
from tests.bench.cluster import AuditLog, Cluster, running
from tests.bench.figures import Row, Summary

WORKSPACES = (200, 1_000, 5_000)
# The rows for a number of workspaces.
READY = "time to ready on Kubernetes, {:,} workspaces"
CALLS_FOR_START = "API calls for a start on Kubernetes, {:,} workspaces"
CALLS_AT_REST = "API calls at rest on Kubernetes, {:,} workspaces"
MEMORY = "memory of the controller on Kubernetes, {:,} workspaces"
CPU_AT_REST = "CPU of the controller at rest on Kubernetes, {:,} workspaces"
ROWS = (READY, CALLS_FOR_START, CALLS_AT_REST, MEMORY, CPU_AT_REST)
_BURST = 200
# How long the caches, the collector and the database take to settle after a burst.
_SETTLE_SECONDS = 10.0
# The controller renews each of its watches once a minute.
_REST_SECONDS = 60.0
_REST_WINDOWS = 2


@dataclass(frozen=True, slots=True)
class Rest:
    """What the controller does in a minute in which nothing happens."""

    calls: float
    cpu_seconds: float


async def _rest(cluster: Cluster) -> Rest:
    pids = [cluster.controller_pid]
    cluster.audit.calls_of_controller()
    before, began = processes.cpu_seconds(pids), time.monotonic()
    await asyncio.sleep(_REST_SECONDS)
    minutes = (time.monotonic() - began) / 60
    calls = cluster.audit.calls_of_controller()
    return Rest(calls / minutes, (processes.cpu_seconds(pids) - before) / minutes)


async def measure(cluster: Cluster, existing: int, wanted: int) -> list[dict[str, Any]]:
    """Creates workspaces until `wanted` exist. Returns the rows for this number."""
    ready: list[float] = []
    calls = 0.0
    while existing < wanted:
        cluster.audit.calls_of_controller()
        # A smaller burst comes first, so that the last one has its full size.
        ready = await cluster.create((wanted - existing) % _BURST or _BURST)
        existing += len(ready)
        # The pause between two renewals of the watches is longer than a burst, so the calls that
        # arrive now belong to the burst.
        await asyncio.sleep(1)
        calls = cluster.audit.calls_of_controller() / len(ready)
        say(f"{existing} workspaces, ready in {statistics.median(ready):.1f} s")
    await asyncio.sleep(_SETTLE_SECONDS)
    rests = [await _rest(cluster) for _ in range(_REST_WINDOWS)]
    memory = processes.private_bytes(cluster.controller_pid) / 1e6
    cores = [each.cpu_seconds / 60 * 1000 for each in rests]
    return [
        row(READY, wanted, "s", ready),
        row(CALLS_FOR_START, wanted, "calls", [calls]),
        row(CALLS_AT_REST, wanted, "calls/min", [each.calls for each in rests]),
        row(MEMORY, wanted, "MB", [memory]),
        row(CPU_AT_REST, wanted, "core/1000", cores),
    ]


def row(name: str, workspaces: int, unit: str, values: Sequence[float]) -> dict[str, Any]:
    """A row of the output."""
    made = Row(name=name.format(workspaces), unit=unit, value=lambda _: 0.0)
    return Summary(made, values).as_json()


def say(text: str) -> None:
    """Prints the progress."""
    sys.stderr.write(f"{text}\n")


async def run(workspaces: Sequence[int], audit: Path) -> None:
    """Measures and prints the rows for each number of workspaces."""
    existing = 0
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        async with running(Path(folder), AuditLog(audit)) as cluster:
            for wanted in sorted(workspaces):
                for each in await measure(cluster, existing, wanted):
                    sys.stdout.write(json.dumps(each) + "\n")
                    sys.stdout.flush()
                existing = wanted


def main() -> None:
    """Runs until all is measured."""
    processes.exit_on_sigterm()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workspaces", type=int, nargs="*", default=WORKSPACES)
    audit = os.environ.get("API_AUDIT_LOG")
    if not (audit and os.environ.get("KUBECONFIG")):
        parser.error("set API_AUDIT_LOG, and run it with .ci/with_api_server.sh")
    asyncio.run(run(parser.parse_args().workspaces, Path(audit)))


if __name__ == "__main__":
    main()
