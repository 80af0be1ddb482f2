"""Replaces the workers behind an Envoy, under load, and measures what callers and agents notice."""

import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.bench.discovery import edge
from tests.bench.discovery.edge import Endpoints
from tests.bench.discovery.load import Calls, calling
from tests.support.named_workers import END_SECONDS, NamedWorkers
from tests.support.stack import Stack, Workspace
from tests.support.waiting import eventually

# The default of the service.
LEASE_SECONDS = 30.0
AGENTS = 3
# Longer than the DNS keeps an answer.
_FOUND_SECONDS = 45.0
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Variant:
    """A way in which Envoy finds workers, and how long one that leaves serves before its SIGTERM.

    Agents always find the workers by the DNS.
    """

    name: str
    pre_stop_seconds: float
    # For how long the DNS keeps an answer, as that of a cluster does.
    cache_seconds: float
    eds: bool = False
    # With EDS: from a change until Envoy learns of it.
    lag_seconds: float = 0.0


@dataclass(slots=True)
class Times:
    """The moments of a roll-out, in Unix time; those of workers by their addresses."""

    began: float = 0.0
    announced: dict[str, float] = field(default_factory=dict)
    terminated: dict[str, float] = field(default_factory=dict)
    ended: float = 0.0


def say(text: str) -> None:
    """Prints the progress."""
    sys.stderr.write(f"{text}\n")


def measure(workers: NamedWorkers, variant: Variant, folder: Path) -> dict[str, list[float]]:
    """One round: replaces the two workers that run. Returns the figures by name."""
    dns, old = workers.dns, list(workers.running)
    dns.ttl_seconds = int(variant.cache_seconds)
    dns.cache(0)
    endpoints = Endpoints(folder, workers.port, variant.lag_seconds) if variant.eds else None
    if endpoints is not None:
        for address in old:
            endpoints.put_now(address, "HEALTHY")
    stack = workers.stack
    with edge.running(workers, folder, endpoints) as measured:
        stack.close_callers()
        stack.ready["rest_url"] = measured.rest_url
        spaces = [Workspace(stack) for _ in range(AGENTS)]
        token = stack.tokens["full_access"]
        with (
            calling(measured.rest_url, measured.grpc_address, token, spaces[0].id) as calls,
            _watching_leases(stack, spaces) as leases,
        ):
            eventually(lambda: set(old) <= set(calls_by_worker(measured.log.read_text())))
            times = _replace_all(workers, variant, endpoints)
            new = set(times.announced)
            eventually(
                lambda: new <= set(calls_by_worker(measured.log.read_text())), _FOUND_SECONDS
            )
            eventually(lambda: _none_is_silent(stack, spaces, times.ended), 2 * LEASE_SECONDS)
        left = [space for space in spaces if space.get()["status"] != "failed"]
        for space in left:
            space.rest.post(f"{space.path}/stop")
    for reason, count in Counter(why for each in calls.values() for _, why in each.lost).items():
        say(f"lost {count} times: {reason}")
    found = calls_by_worker(measured.log.read_text())
    return figures(times, found, calls) | {
        "longest silence of an agent": [max(leases)],
        "agents that ended": [len(spaces) - len(left)],
    }


def _replace_all(workers: NamedWorkers, variant: Variant, endpoints: Endpoints | None) -> Times:
    """Replaces the workers as a Deployment with maxSurge 1 and maxUnavailable 0 does.

    When a new worker is ready, an old one is deleted, and the next new one starts.
    """
    times = Times(time.time())

    def end(address: str, process: psutil.Popen) -> None:
        time.sleep(variant.pre_stop_seconds)
        times.terminated[address] = time.time()
        process.terminate()
        assert process.wait(END_SECONDS) == 0
        if endpoints is not None:
            endpoints.put(address, "")

    with ThreadPoolExecutor() as threads:
        ending = []
        for old in list(workers.running):
            new = workers.start_unnamed_worker()
            if not times.announced:
                # The worst case: the DNS has just cached the old addresses.
                workers.dns.cache(variant.cache_seconds)
            times.announced[new] = time.time()
            workers.add(new)
            workers.remove(old)
            if endpoints is not None:
                endpoints.put(new, "HEALTHY")
                endpoints.put(old, "DRAINING")
            ending.append(threads.submit(end, old, workers.running.pop(old)))
        for each in ending:
            each.result()
    times.ended = time.time()
    return times


@contextmanager
def _watching_leases(stack: Stack, spaces: list[Workspace]) -> Iterator[list[float]]:
    """Collects, inside the block, for how many seconds an agent had not renewed its lease."""
    silences: list[float] = []
    stopping = threading.Event()
    ids = [space.id for space in spaces]

    def watch() -> None:
        with stack.database() as database:
            while not stopping.wait(_POLL_SECONDS):
                row = database.execute(
                    "SELECT extract(epoch FROM min(lease_expires_at) - now()) FROM workspaces "
                    "WHERE id = ANY(%s) AND status = 'idle'",
                    (ids,),
                ).fetchone()
                if row is not None and row[0] is not None:
                    silences.append(LEASE_SECONDS - float(row[0]))

    with ThreadPoolExecutor(1) as threads:
        watching = threads.submit(watch)
        try:
            yield silences
        finally:
            stopping.set()
            watching.result()


def _none_is_silent(stack: Stack, spaces: list[Workspace], since: float) -> bool:
    """Whether each agent has renewed its lease since this moment, or has ended."""
    with stack.database() as database:
        row = database.execute(
            "SELECT count(*) FROM workspaces WHERE id = ANY(%s) AND status = 'idle' "
            "AND lease_expires_at < to_timestamp(%s)",
            ([space.id for space in spaces], since + LEASE_SECONDS),
        ).fetchone()
    return row == (0,)


def calls_by_worker(log: str) -> dict[str, list[float]]:
    """When Envoy got the calls that it sent to each worker, in order, from its log."""
    found: dict[str, list[float]] = {}
    for line in log.splitlines():
        moment, _, worker = line.partition(" ")
        host, colon, _ = worker.rpartition(":")
        # Envoy may be writing the last line. A call without a worker has `-`.
        if colon:
            found.setdefault(host, []).append(float(moment))
    return {worker: sorted(moments) for worker, moments in found.items()}


def figures(
    times: Times, found: dict[str, list[float]], calls: dict[str, Calls]
) -> dict[str, list[float]]:
    """The figures of a round, in seconds and calls, with a value for each worker where it says so.

    The last call after SIGTERM is negative if Envoy sent it before.
    """
    lost = sorted(moment for each in calls.values() for moment, _ in each.lost)
    return {
        "first call after the announcement (each worker)": [
            found[worker][0] - moment for worker, moment in times.announced.items()
        ],
        "last call after SIGTERM (each worker)": [
            found[worker][-1] - moment for worker, moment in times.terminated.items()
        ],
        "calls": [sum(each.count for each in calls.values())],
        **{f"calls lost over {kind}": [len(each.lost)] for kind, each in calls.items()},
        "time from the first lost call to the last": [lost[-1] - lost[0] if lost else 0.0],
        "slowest call": [max(each.slowest_seconds for each in calls.values())],
        "roll-out": [times.ended - times.began],
        "roll-out after the last worker was ready": [times.ended - max(times.announced.values())],
    }
