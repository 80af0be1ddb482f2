"""Runs a stack with busy agents, and puts load on it in phases."""

import os
import subprocess
import urllib.request
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.faults.long.overload.load import Load, Phase
from tests.support.ports import free_ports
from tests.support.stack import Stack
from tests.support.waiting import eventually

FACTOR = 3.0
LEAST_SHARE = 0.8
LONGEST_SECONDS = 1.0
RECOVERY_SECONDS = 10.0
# The load gets a lower processor priority than the service that it measures.
_NICE = 10
_GROWTH = 1.5
# The longest iteration of an agent. A cancelled task ends within this time.
_STEP_SECONDS = 60
_READY_SECONDS = 300.0
# How long all agents together may take to begin their tasks, which they all do at once.
_WARM_UP_SECONDS = 120.0
_RECOVERED_SECONDS = 120.0
_STOPS = 5
_SETTLE_SECONDS = 2.0 * _STEP_SECONDS


@dataclass(frozen=True)
class Verdict:
    """The result of a run."""

    highest: Phase
    overload: Phase
    recovered: bool
    replaced: int
    # The status reasons of the workspaces that have failed.
    failed: Counter[str]

    @property
    def share(self) -> float:
        return self.overload.goodput / self.highest.goodput if self.highest.cancelled else 0.0

    @property
    def holds(self) -> bool:
        healthy = self.recovered and not self.replaced and not self.failed
        return healthy and self.share >= LEAST_SHARE

    def __str__(self) -> str:
        return (
            f"goodput {self.overload.goodput:.2f}/s at {FACTOR:g} times the highest rate, "
            f"{self.highest.goodput:.2f}/s at the highest: {100 * self.share:.0f} %\n"
            f"programs replaced: {self.replaced}; workspaces failed: {sum(self.failed.values())} "
            f"{dict(self.failed)}; recovered within {RECOVERY_SECONDS:g} s: {self.recovered}\n"
            f"{'holds' if self.holds else 'DOES NOT HOLD'}"
        )


@dataclass
class Run:
    """A run of all phases of the load. `measure` starts the stack."""

    state_dir: Path
    checkout: Path
    agents: int
    workers: int
    show: Callable[[str, Phase], None]
    _stack: Stack | None = None
    _calls: Counter[str] = field(default_factory=Counter)

    def measure(
        self, first_rate: float, step_seconds: float, seconds: float, rate: float = 0.0
    ) -> Verdict:
        """Runs all phases. `rate` is the highest rate, or 0 if it must be found."""
        stack = self._start()
        ids = self._workspaces(stack)
        os.nice(_NICE)
        load = Load(stack, ids, _STEP_SECONDS)
        try:
            eventually(lambda: self._count(stack, "provisioning") == 0, _READY_SECONDS)
            self._phase(load, "warm-up", 0, max(step_seconds, _WARM_UP_SECONDS))
            rate = rate or self._climb(load, first_rate, step_seconds)
            # The search for the highest rate has already cancelled the running tasks. So the phases
            # `highest` and `overload` both use tasks that begin later.
            highest = self._phase(load, "highest", rate, step_seconds)
            load.settle([highest], _SETTLE_SECONDS)
            self.show("highest", highest)
            overload = self._phase(load, "overload", FACTOR * highest.rate, seconds)
            self._phase(load, "after", highest.rate, RECOVERY_SECONDS)
            # Long enough that one slow call does not decide the result.
            after_seconds = max(step_seconds, _RECOVERED_SECONDS)
            recovered = self._phase(load, "recovered", highest.rate, after_seconds)
            load.settle([overload, recovered], _SETTLE_SECONDS)
            self.show("overload", overload)
            return Verdict(
                highest,
                overload,
                recovered.p99 < LONGEST_SECONDS,
                stack.output.read_text().count("program_ended"),
                self._failed(stack),
            )
        finally:
            load.close()

    def stop(self) -> None:
        """Stops the stack.

        On a busy machine, many agents take longer to end than one attempt waits.
        """
        if self._stack is None:
            return
        for _ in range(_STOPS):
            with suppress(subprocess.TimeoutExpired):
                self._stack.kill_if_running()
                return
        raise AssertionError("the stack did not stop")

    def _start(self) -> Stack:
        port = free_ports(self.workers + 3, in_a_row=self.workers + 3)[0]
        self._stack = stack = Stack(
            self.state_dir,
            WORKERS=str(self.workers),
            METRICS_ADDRESS=f"127.0.0.1:{port}",
            RATE_LIMIT="off",
        )
        stack.checkout = self.checkout
        stack.start()
        return stack

    def _workspaces(self, stack: Stack) -> list[str]:
        return [
            str(stack.rest().post("/v1/workspaces", {"name": f"overload {number}"}, 201)["id"])
            for number in range(self.agents)
        ]

    def _climb(self, load: Load, rate: float, seconds: float) -> float:
        """Finds the highest rate whose p99 is below the limit."""
        best = 0.0
        while self._phase(load, "rate", rate, seconds).p99 < LONGEST_SECONDS:
            best, rate = rate, rate * _GROWTH
        assert best, "the first rate is too high for this machine"
        return best

    def _phase(self, load: Load, name: str, rate: float, seconds: float) -> Phase:
        phase = load.run(rate, seconds)
        calls = self._calls_so_far()
        phase.calls, self._calls = calls - self._calls, calls
        self.show(name, phase)
        return phase

    def _calls_so_far(self) -> Counter[str]:
        """The calls that the workers have completed so far, by outcome."""
        assert self._stack is not None
        calls: Counter[str] = Counter()
        for worker in range(self.workers):
            url = f"http://127.0.0.1:{self._stack.metrics_port + worker}/metrics"
            try:
                with urllib.request.urlopen(url, timeout=20) as response:
                    text = response.read().decode()
            except OSError:
                # The worker is being replaced. Its successor counts from zero.
                continue
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    if sample.name == "evershell_rpc_seconds_count":
                        calls[sample.labels["outcome"]] += int(sample.value)
        return calls

    def _count(self, stack: Stack, status: str) -> int:
        with stack.database() as connection:
            row = connection.execute(
                "SELECT count(*) FROM workspaces WHERE status = %s", (status,)
            ).fetchone()
        return int(row[0]) if row else 0

    def _failed(self, stack: Stack) -> Counter[str]:
        with stack.database() as connection:
            rows = connection.execute(
                "SELECT status_reason FROM workspaces WHERE status = 'failed'"
            ).fetchall()
        return Counter(str(row[0]) for row in rows)
