"""A drill for each alert.

A drill creates the cause of its alerts. The alerts fire, the commands of the runbook are run, and
the alerts end once the cause is removed. The programs, the metrics and Prometheus are real. Only
the times in the alerts are shortened.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import uuid4

import grpc
import httpx
import psutil
import psycopg
import pytest

from tests.deploy.long.drills.prometheus import prometheus
from tests.deploy.long.drills.stage import Stage, repeated
from tests.stack.long.clocks import Clocks
from tests.support import faults
from tests.support.alerts import ALERTS
from tests.support.cluster import copy_cluster
from tests.support.constants import SMALL_LOGS, with_constants
from tests.support.ports import free_ports
from tests.support.receivers import Receivers, receiving, refuse
from tests.support.replication import Server
from tests.support.small_disk import fill, free, shrink_pipe, small_disk
from tests.support.stack import Stack, Workspace
from tests.support.waiting import eventually

_HOUR = 3_600
_LIMIT_SECONDS = 60.0
# Drills freeze agents for a shorter time than this, so the agents keep their leases.
_LEASE_SECONDS = 240
# The size of the worker's pool of database connections. The drills of a turn run at the same time
# and share the pool.
_POOL_SIZE = 8
# What the log line of a failed call contains.
_FAILED = '"(unavailable|deadline_exceeded)"'
# More unauthenticated calls than a worker stores audit entries for in one second.
_REFUSED_CALLS = 100
# How many webhooks a drill keeps at once. An organization may have at most 20.
_KEPT_WEBHOOKS = 5

# A pause between calls leaves processor time for the programs.
_PAUSE_SECONDS = 0.5

# Creates the cause of alerts, and removes the cause after the block. Yields, for each alert, the
# text that the runbook's commands must print.
Cause = Callable[[Stage], AbstractContextManager[dict[str, str]]]


@dataclass(frozen=True)
class Drill:
    alerts: tuple[str, ...]
    cause: Cause


def drill(*alerts: str) -> Callable[[Cause], Drill]:
    """Declares the cause of these alerts."""
    return lambda cause: Drill(alerts, cause)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("drills")
    state = folder / ".state"
    clocks = Clocks(folder / "clocks", cached=True)
    clocks.set("database", 0)
    database = Server(folder / "data", clocks.of("database"))
    copy_cluster(folder / "data")
    ports = free_ports(4, in_a_row=4)
    stack = Stack(
        state,
        DATABASE_URL=database.url,
        METRICS_ADDRESS=f"127.0.0.1:{ports[0]}",
        WORKERS="1",
        POOL_SIZE=str(_POOL_SIZE),
        LEASE_SECONDS=str(_LEASE_SECONDS),
        **clocks.environment | with_constants(folder / "clocks", SMALL_LOGS),
    )
    targets = dict(zip(("worker", "controller", "edge", "standby"), ports, strict=True))
    with ExitStack() as running:
        running.callback(database.stop)
        # No fsync: a disk stall (for example during an image build) must not trigger an alert here.
        database.start(fsync="off")
        running.enter_context(small_disk(state / "logs", 8 << 20))
        running.enter_context(stack.started())
        watching = running.enter_context(prometheus(folder, targets))
        # Once Prometheus has scraped all programs, it sees each later count as an increase.
        watching.await_end(set(ALERTS))
        yield Stage(stack, database, clocks, watching)


@drill("HoldInForce", "WebhookDeliveryOld")
@contextmanager
def what_the_leader_counts(stage: Stage) -> Iterator[dict[str, str]]:
    """Replaces the leading controller, because a leader counts at its start, then once a minute."""
    workspace, held = Workspace(stage.stack), stage.stack.rest("other_org")
    with Receivers().running() as receivers:
        url = receivers.add(refuse("503 Service Unavailable")).url
        created = _webhook(stage, url)
        _end_a_task(workspace)
        aged = (
            "UPDATE webhook_deliveries SET pending_since = pending_since - interval '12h 1min' "
            "WHERE webhook_id = %s"
        )
        with stage.stack.database() as connection:
            # The delivery is recorded once the event was read from the log.
            eventually(lambda: connection.execute(aged, (created,)).rowcount, _LIMIT_SECONDS)
        held.post("/v1/hold", {"reason": "a drill"}, 200)
        _replace_leader(stage)
        yield {"HoldInForce": "a drill", "WebhookDeliveryOld": created}
        held.post("/v1/hold/release", status=200)
        _delete_webhook(stage, created)
        _await_removal_of_deliveries(stage, created)


@drill("NoLeadingController", "NoWorkers", "NoEdges")
@contextmanager
def programs_end(stage: Stage) -> Iterator[dict[str, str]]:
    """All programs end and are not restarted."""
    stack = stage.stack
    workspace = Workspace(stack)
    task_id = _begin_a_task(workspace)
    with stack.frozen_process(stack.pid):
        for pid in (*stack.pids("fleet"), *stack.pids("serve")):
            stack.kill(pid)
        eventually(lambda: stack.rest().call("GET", workspace.path).status_code == 503)
        for process in psutil.Process(stack.pid).children():
            if process.name() == "envoy":
                process.kill()
        with pytest.raises(httpx.TransportError):
            eventually(lambda: not workspace.get())
        yield {}
    eventually(lambda: stack.rest().serves(workspace.path), _LIMIT_SECONDS)
    # The agent has kept running without workers.
    workspace.cancel(force_after="0s")
    assert workspace.await_end(task_id)["status"] == "cancelled"


@drill("CancellationOverdue", "LimitsReached", "AuditEntriesLost", "WebhooksFail")
@contextmanager
def much_at_once(stage: Stage) -> Iterator[dict[str, str]]:
    stack = stage.stack
    patient, limited = Workspace(stack), Workspace(stack)
    open_task = _begin_a_task(patient)
    patient.cancel()
    limited_task = limited.submit(*["sleep 0.5"] * 100, limits={"max_duration": "1s"})
    stranger = stack.grpc("sk_unknown")
    for refused in [stranger.begin("CreateWorkspace") for _ in range(_REFUSED_CALLS)]:
        # A busy worker refuses some of the calls before it authenticates them.
        assert refused.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAVAILABLE)
    with ExitStack() as going_on:
        receivers = going_on.enter_context(Receivers().running())
        webhooks = FailingWebhooks(stage, receivers)
        going_on.callback(webhooks.delete)
        going_on.enter_context(repeated(webhooks.fail, _PAUSE_SECONDS))
        yield {
            "CancellationOverdue": open_task,
            "LimitsReached": limited_task,
            "AuditEntriesLost": "audit_entries_lost",
            "WebhooksFail": "the receiver answered 503",
        }
    patient.cancel(force_after="0s")
    assert patient.await_end(open_task)["status"] == "cancelled"


@drill("LogLinesLost")
@contextmanager
def the_disk_of_the_logs_is_full(stage: Stage) -> Iterator[dict[str, str]]:
    """The disk fills up while the worker and its webhook process write to the same log."""
    stack = stage.stack
    logs, caller = stack.state_dir / "logs", stack.rest()
    (worker,) = stack.pids("serve")
    with receiving() as receiver:
        webhook = _webhook(stage, receiver.url)
        eventually(psutil.Process(worker).children)
        shrink_pipe(worker)

        def log() -> None:
            fill(logs)
            assert caller.serves("/v1/workspaces")

        with repeated(log):
            yield {"LogLinesLost": "100%"}
        free(logs)
        eventually(
            lambda: caller.serves("/v1/workspaces") and "log_lines_lost" in stage.logs("worker")
        )
        _delete_webhook(stage, webhook)


@drill("CancelSignalsLate", "AgentsUnreachable")
@contextmanager
def agents_are_frozen(stage: Stage) -> Iterator[dict[str, str]]:
    stack = stage.stack
    cancelled, *started = (Workspace(stack) for _ in range(3))
    task_id = _begin_a_task(cancelled)
    with ExitStack() as frozen:
        for workspace in (cancelled, *started):
            frozen.enter_context(stack.frozen_process(stack.agent_pid(workspace.id)))
        cancel = partial(cancelled.cancel, status=503, force_after="600s")
        frozen.enter_context(repeated(cancel, _PAUSE_SECONDS))
        for workspace in started:
            path, task = f"{workspace.path}/tasks", {"description": "true"}
            submit = partial(stack.rest().call, "POST", path, json=task)
            frozen.enter_context(repeated(submit, _PAUSE_SECONDS))
        yield {"AgentsUnreachable": "agent_unreachable"}
    # An agent that has just been thawed may answer too late. The cancellation is recorded anyway.
    path = f"{cancelled.path}/task/cancel"
    answer = stack.rest().call("POST", path, json={"force_after": "0s"})
    assert answer.status_code in (202, 503), answer.text
    assert cancelled.await_end(task_id)["status"] == "cancelled"
    for workspace in started:
        _await_idle(workspace)
        workspace.await_end(workspace.submit("true"))


@drill("CallsFail", "DatabaseConnectionsExhausted")
@contextmanager
def a_session_holds_a_lock(stage: Stage) -> Iterator[dict[str, str]]:
    """The runbook finds the session. Then the drill ends it."""
    stack = stage.stack
    workspace = Workspace(stack)
    task_id = _end_a_task(workspace)

    def read() -> None:
        # Reads of a task exhaust the pool, because they may use all of its connections.
        with suppress(grpc.RpcError):
            stack.grpc().call("GetTask", workspace_id=workspace.id, task_id=task_id, timeout=1)

    with suppress(psycopg.OperationalError), stack.database() as connection, ExitStack() as calls:
        connection.execute("BEGIN")
        connection.execute("LOCK TABLE workspaces")
        for _ in range(2 * _POOL_SIZE):
            calls.enter_context(repeated(read))
        yield {"CallsFail": _FAILED, "DatabaseConnectionsExhausted": "LOCK TABLE workspaces"}
        holder = connection.info.backend_pid
        with stack.database() as other:
            assert other.execute("SELECT pg_terminate_backend(%s)", (holder,)).fetchone() == (True,)
    eventually(lambda: stack.rest().serves(workspace.path), _LIMIT_SECONDS)


@drill("NoHealthyWorkers", "CancelTaskFails")
@contextmanager
def the_database_is_frozen(stage: Stage) -> Iterator[dict[str, str]]:
    stack = stage.stack
    workspace = Workspace(stack)
    task_id = _begin_a_task(workspace)
    path = f"{workspace.path}/task/cancel"

    def cancel() -> None:
        assert workspace.rest.call("POST", path).status_code == 503

    with stage.database.frozen(), repeated(cancel, _PAUSE_SECONDS):
        yield {"NoHealthyWorkers": _FAILED, "CancelTaskFails": _FAILED}
    eventually(lambda: stack.rest().serves(workspace.path), _LIMIT_SECONDS)
    workspace.cancel(force_after="0s")
    assert workspace.await_end(task_id)["status"] == "cancelled"


@drill("ClockOff", "DatabaseClockStepped")
@contextmanager
def clocks_are_wrong(stage: Stage) -> Iterator[dict[str, str]]:
    stage.clocks.set("serve", -_HOUR)
    stage.prometheus.await_firing({"ClockOff"})
    stage.clocks.set("database", _HOUR)
    yield {"DatabaseClockStepped": r"-3(600|599)\."}
    for name in ("serve", "database"):
        stage.clocks.set(name, 0)


# Drills that do not disturb each other run in the same turn. The turn whose alerts take longest to
# end comes first.
TURNS = (
    [the_database_is_frozen],
    [much_at_once, agents_are_frozen, what_the_leader_counts],
    [the_disk_of_the_logs_is_full],
    [programs_end],
    [a_session_holds_a_lock],
    [clocks_are_wrong],
)


def test_each_alert_has_a_drill() -> None:
    assert sorted(name for turn in TURNS for each in turn for name in each.alerts) == sorted(ALERTS)


@pytest.mark.parametrize("turn", TURNS, ids=lambda turn: turn[0].alerts[0])
def test_drills(turn: list[Drill], stage: Stage) -> None:
    alerts = {name for each in turn for name in each.alerts}
    stage.prometheus.await_end(alerts)
    printed: dict[str, str] = {}
    with ExitStack() as causes:
        for each in turn:
            printed |= causes.enter_context(each.cause(stage))
        stage.prometheus.await_firing(alerts)
        for alert in alerts:
            stage.assert_prints(alert, printed.get(alert, ""))


def test_all_alerts_end(stage: Stage) -> None:
    """Every alert ends once its cause is removed."""
    stage.prometheus.await_end(set(ALERTS))


def _begin_a_task(workspace: Workspace) -> str:
    """Submits a task that runs for a day, and waits until its command runs. Returns its id.

    On a busy machine, the agent may not take the task within 2 s. The task is then submitted again.
    """

    def submitted() -> str | None:
        task = {"description": "sleep 86400"}
        answer = workspace.rest.call("POST", f"{workspace.path}/tasks", json=task).json()
        task_id: str | None = answer.get("task_id")
        assert task_id or answer["error"]["code"] in ("agent_unreachable", "workspace_busy"), answer
        return task_id

    task_id = eventually(submitted, _LIMIT_SECONDS)
    assert task_id is not None
    workspace.await_phase(task_id, "tool_call")
    return task_id


def _end_a_task(workspace: Workspace) -> str:
    """Submits a task and waits for its end. Returns its id.

    On a busy machine, the agent may not take the task within 2 s. Even then, there is an event for
    the submission, and the task ends `delivery_failed`.
    """
    task = {"description": "true"}
    answer = workspace.rest.call("POST", f"{workspace.path}/tasks", json=task).json()
    error = answer.get("error")
    assert error is None or error["code"] == "agent_unreachable", error
    task_id: str = error["details"]["task_id"] if error else answer["task_id"]
    faults.await_terminal(workspace, task_id, _LIMIT_SECONDS)
    return task_id


def _await_idle(workspace: Workspace) -> None:
    """Waits for at most the duration of a lease.

    An agent that did not answer SubmitTask may get its task only when it next renews its lease.
    """
    eventually(lambda: workspace.get()["status"] == "idle", _LEASE_SECONDS)


def _webhook(stage: Stage, url: str) -> str:
    body = {"url": url, "event_types": ["task_submitted"]}
    created = _call(stage, "POST", "/v1/webhooks", json=body).json()
    return str(created["webhook"]["id"])


def _delete_webhook(stage: Stage, webhook_id: str) -> None:
    _call(stage, "DELETE", f"/v1/webhooks/{webhook_id}")


def _await_removal_of_deliveries(stage: Stage, webhook_id: str) -> None:
    """Deliveries to a deleted webhook are removed at their next attempt, which is made due here."""
    due = "UPDATE webhook_deliveries SET due_at = now() WHERE webhook_id = %s"
    left = "SELECT FROM webhook_deliveries WHERE webhook_id = %s"
    with stage.stack.database() as connection:
        connection.execute(due, (webhook_id,))
        eventually(lambda: not connection.execute(left, (webhook_id,)).fetchone(), _LIMIT_SECONDS)


def _call(stage: Stage, method: str, path: str, **arguments: Any) -> httpx.Response:
    """Makes a call, and repeats it while a busy stack answers 503.

    The call has an idempotency key, so it takes effect only once.
    """
    caller, headers = stage.stack.rest("owner"), {"idempotency-key": uuid4().hex}

    def answered() -> httpx.Response | None:
        response = caller.call(method, path, headers=headers, **arguments)
        return None if response.status_code == 503 else response

    response = eventually(answered, _LIMIT_SECONDS)
    assert response is not None and response.status_code < 500, response
    return response


class FailingWebhooks:
    """Webhooks whose receivers fail.

    After a failed delivery, the service pauses before the next attempt. So each failure needs a new
    webhook.
    """

    def __init__(self, stage: Stage, receivers: Receivers) -> None:
        self._stage = stage
        self._receivers = receivers
        self._workspace = Workspace(stage.stack)
        self._created: list[str] = []

    def fail(self) -> None:
        """Makes a delivery to a new webhook fail.

        Deletes the oldest webhook if there are too many.
        """
        receiver = self._receivers.add(refuse("503 Service Unavailable"))
        self._created.append(_webhook(self._stage, receiver.url))
        if len(self._created) > _KEPT_WEBHOOKS:
            _delete_webhook(self._stage, self._created.pop(0))
        _end_a_task(self._workspace)
        eventually(lambda: receiver.requests, _LIMIT_SECONDS)

    def delete(self) -> None:
        for webhook_id in self._created:
            _delete_webhook(self._stage, webhook_id)


def _replace_leader(stage: Stage) -> None:
    for pid in stage.stack.pids("fleet"):
        stage.stack.kill(pid)
