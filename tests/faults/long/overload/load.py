"""The load of an overload: cancellations at a set rate, and submissions of new tasks.

The rate does not depend on the answers (an open loop). Each CancelTask call names its task.
"""

import random
import selectors
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from evershell.workspace.v1.workspace_service_pb2 import (
    CancelTaskRequest,
    CancelTaskResponse,
    SubmitTaskRequest,
)

from bench.figures import percentile
from bench.http2 import RESET, Connection, message
from tests.support.stack import Stack

_SERVICE = "/evershell.workspace.v1.WorkspaceService/"
# An answer counts only if it comes within this time. The caller gives up after _DEADLINE_SECONDS.
ANSWER_SECONDS = 2.0
_DEADLINE_SECONDS = 5
# The number of connections. Each has room for 1,000 streams.
_CONNECTIONS = 4
# How often the state of the workspaces is read from the database.
_READ_SECONDS = 0.25
# The number of steps of a task after its first step. A step is an iteration that sleeps.
_STEPS = 100
# The maximum number of tasks to submit after each read.
_SUBMITS_A_READ = 15
# The first and the longest pause after a refused submission. Each pause is twice as long as the one
# before, with jitter, as in this project's client.
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 8.0
_STATE = """
SELECT w.id, w.status, t.id, t.status, t.cancel_requested_at IS NOT NULL
FROM workspaces w LEFT JOIN tasks t ON t.id = w.current_task_id WHERE w.id = ANY(%s)
"""


@dataclass
class Phase:
    """What happened while the load ran at one rate."""

    # The number of cancellations that begin per second; 0 if tasks are only submitted.
    rate: float
    seconds: float = 0.0
    # For each CancelTask call, the seconds from its due time to its answer; infinite if it failed.
    waits: list[float] = field(default_factory=list)
    # The number of CancelTask calls, by gRPC status.
    cancels: Counter[int] = field(default_factory=Counter)
    # The number of SubmitTask calls, by gRPC status.
    submits: Counter[int] = field(default_factory=Counter)
    # The tasks whose cancellation was answered `accepted` in time.
    accepted: set[str] = field(default_factory=set)
    # The processor time that the load itself has used.
    own_cpu_seconds: float = 0.0
    # How many connections the edge has closed.
    lost_connections: int = 0
    # How many tasks in `accepted` have ended `cancelled`.
    cancelled: int = 0
    # The calls of callers and agents that the workers have completed, by outcome.
    calls: Counter[str] = field(default_factory=Counter)

    @property
    def goodput(self) -> float:
        """Tasks per second whose cancellation was accepted in time and which ended `cancelled`."""
        return self.cancelled / self.seconds

    @property
    def p99(self) -> float:
        return percentile(self.waits, 99) if self.waits else float("inf")

    def __str__(self) -> str:
        middle = percentile(self.waits, 50) if self.waits else float("inf")
        return (
            f"{self.rate:6.1f}/s for {self.seconds:5.1f} s: goodput {self.goodput:6.2f}/s, "
            f"p50 {middle:.3f} s, p99 {self.p99:.3f} s, "
            f"accepted {len(self.accepted)}, ended cancelled {self.cancelled}, "
            f"CancelTask {dict(sorted(self.cancels.items()))}, "
            f"SubmitTask {dict(sorted(self.submits.items()))}, calls {dict(self.calls)}, "
            f"lost connections {self.lost_connections}, "
            f"generator {100 * self.own_cpu_seconds / self.seconds:.0f} % of a core"
        )


@dataclass
class _Workspace:
    id: str
    task_id: str = ""
    submits_at: float = 0.0
    pause_seconds: float = _FIRST_PAUSE_SECONDS


# What is known about a call in flight: its workspace and task, when it was due, and its phase.
_Made = tuple[_Workspace, str, float, Phase]


class Load:
    """Makes calls through the edge, over gRPC. All of them are made in the thread of `run`."""

    def __init__(self, stack: Stack, workspace_ids: Sequence[str], step_seconds: int) -> None:
        """`step_seconds` is the duration of each step of a task except the first."""
        self._workspaces = {each: _Workspace(each) for each in workspace_ids}
        self._step_seconds = step_seconds
        metadata = [("authorization", f"Bearer {stack.tokens['full_access']}")]
        metadata.append(("grpc-timeout", f"{_DEADLINE_SECONDS}S"))

        self._address, self._metadata = stack.ready["grpc_addr"], metadata
        self._selector = selectors.DefaultSelector()
        self._cancelling = [self._connect("CancelTask") for _ in range(_CONNECTIONS)]
        self._submitting = self._connect("SubmitTask")
        self._database = stack.database()
        self._made: dict[tuple[int, int], _Made] = {}
        self._targets: deque[_Workspace] = deque()
        self._chance = random.Random(0)

    def close(self) -> None:
        """Closes the connections."""
        for each in (*self._cancelling, self._submitting):
            each.close()
        self._selector.close()
        self._database.close()

    def run(self, rate: float, seconds: float) -> Phase:
        """Begins `rate` cancellations a second, and submits tasks to idle workspaces."""
        phase, cpu = Phase(rate), time.process_time()
        began = now = read_at = time.monotonic()
        until, due_at = began + seconds, self._next(began, rate)
        while now < until:
            while due_at <= now:
                self._cancel(due_at, phase)
                due_at = self._next(due_at, rate)
            if read_at <= now:
                self._read(now, phase)
                read_at = now + _READ_SECONDS
            self._receive(max(0.0, min(due_at, read_at, until) - time.monotonic()), phase)
            now = time.monotonic()
        phase.seconds = now - began
        phase.own_cpu_seconds = time.process_time() - cpu
        return phase

    def settle(self, phases: Sequence[Phase], seconds: float) -> None:
        """Waits for the answers and for the ends of the accepted tasks, `seconds` at most."""
        until = time.monotonic() + seconds
        while self._made and time.monotonic() < until:
            self._receive(0.1, phases[-1])
        for phase in phases:
            while True:
                row = self._database.execute(
                    "SELECT count(*) FROM tasks WHERE status = 'cancelled' AND id = ANY(%s)",
                    (list(phase.accepted),),
                ).fetchone()
                phase.cancelled = row[0] if row else 0
                if phase.cancelled == len(phase.accepted) or time.monotonic() > until:
                    break
                # Reads from the connections: the edge closes a connection that does not answer its
                # pings.
                self._receive(0.5, phases[-1])

    def _next(self, after: float, rate: float) -> float:
        return after + self._chance.expovariate(rate) if rate else float("inf")

    def _cancel(self, due_at: float, phase: Phase) -> None:
        """Cancels a running task. If none is left, names a task that was cancelled or has ended."""
        chosen = self._targets.popleft() if self._targets else None
        if chosen is None:
            chosen = self._chance.choice(
                [each for each in self._workspaces.values() if each.task_id]
            )
        request = CancelTaskRequest(workspace_id=chosen.id, task_id=chosen.task_id)
        connection = self._chance.choice(self._cancelling)
        stream = connection.call(message(request.SerializeToString()))
        connection.collect(stream)
        self._made[id(connection), stream] = (chosen, chosen.task_id, due_at, phase)
        self._flush(connection, phase)

    def _read(self, now: float, phase: Phase) -> None:
        submitting = {made[0].id for made in self._made.values() if not made[1]}
        cancelling = {made[1] for made in self._made.values()}
        room = _SUBMITS_A_READ
        rows = self._database.execute(_STATE, (list(self._workspaces),)).fetchall()
        self._targets.clear()
        for workspace_id, status, task_id, task_status, is_cancelled in rows:
            workspace = self._workspaces[workspace_id]
            workspace.task_id = task_id or workspace.task_id
            is_free = status == "idle" and workspace_id not in submitting
            if room and is_free and workspace.submits_at <= now:
                self._submit(workspace, now, phase)
                room -= 1
            if task_status == "running" and not is_cancelled and task_id not in cancelling:
                self._targets.append(workspace)
        self._chance.shuffle(self._targets)

    def _submit(self, workspace: _Workspace, now: float, phase: Phase) -> None:
        # The first step has a random length, so the steps of the agents do not end together.
        lines = [f"sleep {self._chance.uniform(0, self._step_seconds):.1f}"]
        lines += [f"sleep {self._step_seconds}"] * _STEPS
        request = SubmitTaskRequest(workspace_id=workspace.id, description="\n".join(lines))
        stream = self._submitting.call(message(request.SerializeToString()))
        self._made[id(self._submitting), stream] = (workspace, "", now, phase)
        self._flush(self._submitting, phase)

    def _connect(self, method: str) -> Connection:
        connection = Connection(self._address, _SERVICE + method, self._metadata)
        self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        return connection

    def _flush(self, connection: Connection, phase: Phase) -> None:
        try:
            connection.flush()
        except OSError:
            self._replace(connection, phase)

    def _replace(self, lost: Connection, phase: Phase) -> None:
        """Counts the calls of a lost connection as failed, and connects again."""
        phase.lost_connections += 1
        for connection, stream in list(self._made):
            if connection == id(lost):
                self._take(lost, stream, RESET)
        self._selector.unregister(lost.socket)
        lost.close()
        if lost is self._submitting:
            self._submitting = self._connect("SubmitTask")
        else:
            self._cancelling[self._cancelling.index(lost)] = self._connect("CancelTask")

    def _receive(self, seconds: float, phase: Phase) -> None:
        for key, _ in self._selector.select(seconds):
            connection: Connection = key.data
            try:
                ended = connection.receive()
            except OSError:
                self._replace(connection, phase)
                continue
            for stream, status in ended:
                self._take(connection, stream, status)

    def _take(self, connection: Connection, stream: int, status: int) -> None:
        made = self._made.pop((id(connection), stream), None)
        if made is None:
            # The edge resets a stream that was answered before its request was read completely.
            return
        workspace, task_id, due_at, phase = made
        now = time.monotonic()
        if connection is self._submitting:
            phase.submits[status] += 1
            pause = workspace.pause_seconds if status else 0.0
            workspace.submits_at = now + pause * self._chance.uniform(0.5, 1)
            longer = min(2 * workspace.pause_seconds, _LONGEST_PAUSE_SECONDS)
            workspace.pause_seconds = longer if status else _FIRST_PAUSE_SECONDS
            return
        reply = bytes(connection.collected.pop(stream, b""))
        phase.cancels[status] += 1
        phase.waits.append(float("inf") if status else now - due_at)
        if status == 0:
            answer = CancelTaskResponse.FromString(reply[5:])
            is_accepted = answer.outcome == CancelTaskResponse.Outcome.accepted
            if is_accepted and now - due_at <= ANSWER_SECONDS:
                phase.accepted.add(task_id)
