"""A drill for each alert: its cause is made, it fires, its runbook is walked, and it ends.

The programs, the metrics and Prometheus are real. Only the times of the alerts are shorter.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
import httpx
import psutil
import psycopg
import pytest

from evershell.stack import postgres
from tests.deploy.long.drills.prometheus import prometheus
from tests.deploy.long.drills.stage import Stage, repeated
from tests.stack.long.clocks import Clocks
from tests.support import faults
from tests.support.alerts import ALERTS
from tests.support.ports import free_ports
from tests.support.receivers import Receivers, receiving, refuse
from tests.support.replication import Server
from tests.support.small_disk import fill, free, shrink_pipe, small_disk
from tests.support.stack import Gate, Stack, Workspace
from tests.support.waiting import eventually

_HOUR = 3_600
_LIMIT_SECONDS = 60.0
_POOL_SIZE = 3
# A line of the log of a call.
_FAILED = '"(unavailable|deadline_exceeded)"'
# More than a worker stores entries of in a second.
_REFUSED_CALLS = 100
# Each organization may have 20.
_KEPT_WEBHOOKS = 5

# Makes a cause, and removes it after the block. Its value has, for each alert, what the commands of
# its runbook print.
Cause = Callable[[Stage], AbstractContextManager[dict[str, str]]]


@dataclass(frozen=True)
class Drill:
    alerts: tuple[str, ...]
    cause: Cause


DRILLS: list[Drill] = []


def drill(*alerts: str) -> Callable[[Cause], Cause]:
    """Declares the cause of these alerts."""

    def declare(cause: Cause) -> Cause:
        DRILLS.append(Drill(alerts, cause))
        return cause

    return declare


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("drills")
    state = folder / ".state"
    clocks = Clocks(folder / "clocks", cached=True)
    clocks.set("database", 0)
    database = Server(folder / "data", clocks.of("database"))
    postgres.initialise(database.places.data_dir)
    database.start()
    ports = free_ports(3, in_a_row=3)
    stack = Stack(
        state,
        DATABASE_URL=database.url,
        METRICS_PORT=str(ports[0]),
        WORKERS="1",
        POOL_SIZE=str(_POOL_SIZE),
        WORKSPACE_FILES_MB="16",
        LOG_MAX_BYTES="65536",
        **clocks.environment,
    )
    targets = dict(zip(("worker", "controller", "edge"), ports, strict=True))
    with ExitStack() as running:
        running.callback(database.stop)
        running.enter_context(small_disk(state / "logs", 8 << 20))
        running.enter_context(stack.started())
        watching = running.enter_context(prometheus(folder, targets))
        # It has seen all programs, so that what they count from now on is an increase.
        watching.await_end(set(ALERTS))
        yield Stage(stack, database, clocks, watching)


@drill("HoldInForce", "WebhookDeliveryOld", "WorkspaceFilesLarge")
@contextmanager
def what_the_leader_counts(stage: Stage) -> Iterator[dict[str, str]]:
    """A new leader counts at once; another one would count within a minute."""
    workspace, held = Workspace(stage.stack), stage.stack.rest("other_org")
    with Receivers().running() as receivers:
        url = receivers.add(refuse("503 Service Unavailable")).url
        created = _webhook(stage, url)
        workspace.await_end(workspace.submit("head -c 14M /dev/zero > large"))
        with stage.stack.database() as connection:
            connection.execute(
                "UPDATE webhook_deliveries SET pending_since = pending_since - interval '12h 1min'"
            )
        held.post("/v1/hold", {"reason": "a drill"}, 200)
        _replace_leader(stage)
        yield {
            "HoldInForce": "a drill",
            "WebhookDeliveryOld": created,
            "WorkspaceFilesLarge": f"{workspace.id}/files",
        }
        held.post("/v1/hold/release", status=200)
        _delete_webhook(stage, created)
        workspace.await_end(workspace.submit("rm large"))


@drill("NoLeadingController", "NoWorkers", "NoEdges")
@contextmanager
def programs_end(stage: Stage) -> Iterator[dict[str, str]]:
    """Nothing starts them again."""
    stack = stage.stack
    workspace = Workspace(stack)
    task_id = workspace.begin("sleep 86400")
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
    # Its agent has waited for the workers.
    workspace.cancel(force_after="0s")
    assert workspace.await_end(task_id)["status"] == "cancelled"


@drill("CancellationOverdue", "LimitsReached", "AuditEntriesLost", "WebhooksFail")
@contextmanager
def much_at_once(stage: Stage) -> Iterator[dict[str, str]]:
    stack = stage.stack
    patient, limited = Workspace(stack), Workspace(stack)
    gate = Gate(patient)
    open_task = patient.begin(gate.command)
    patient.cancel()
    limited_task = limited.submit(*["sleep 0.5"] * 100, limits={"max_duration": "1s"})
    stranger = stack.grpc("sk_unknown")
    for refused in [stranger.begin("CreateWorkspace") for _ in range(_REFUSED_CALLS)]:
        assert refused.code() is grpc.StatusCode.UNAUTHENTICATED
    with ExitStack() as going_on:
        receivers = going_on.enter_context(Receivers().running())
        for _ in range(2):
            webhooks = FailingWebhooks(stage, receivers)
            going_on.callback(webhooks.delete)
            going_on.enter_context(repeated(webhooks.fail))
        yield {
            "CancellationOverdue": open_task,
            "LimitsReached": limited_task,
            "AuditEntriesLost": "audit_entries_lost",
            "WebhooksFail": "the receiver answered 503",
        }
    gate.open()
    assert patient.await_end(open_task)["status"] == "cancelled"


@drill("LogLinesLost")
@contextmanager
def the_disk_of_the_logs_is_full(stage: Stage) -> Iterator[dict[str, str]]:
    """While the worker has a process that delivers to webhooks, which shares its log."""
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
    task_id = cancelled.begin("sleep 86400")
    with ExitStack() as frozen:
        for workspace in (cancelled, *started):
            frozen.enter_context(stack.frozen_process(stack.agent_pid(workspace.id)))
        frozen.enter_context(repeated(lambda: cancelled.cancel(status=503, force_after="600s")))
        for workspace in started:
            path, task = f"{workspace.path}/tasks", {"description": "true"}
            submit = partial(stack.rest().call, "POST", path, json=task)
            frozen.enter_context(repeated(submit))
        yield {"AgentsUnreachable": "agent_unreachable"}
    cancelled.cancel(force_after="0s")
    assert cancelled.await_end(task_id)["status"] == "cancelled"
    for workspace in started:
        workspace.await_status("idle")
        workspace.await_end(workspace.submit("true"))


@drill("CallsFail", "DatabaseConnectionsExhausted")
@contextmanager
def a_session_holds_a_lock(stage: Stage) -> Iterator[dict[str, str]]:
    """The runbook finds it and ends it."""
    stack = stage.stack
    workspace = Workspace(stack)

    def read() -> None:
        with suppress(grpc.RpcError):
            stack.grpc().call("GetWorkspace", workspace_id=workspace.id, timeout=1)

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
    task_id = workspace.begin("sleep 86400")
    path = f"{workspace.path}/task/cancel"

    def cancel() -> None:
        assert workspace.rest.call("POST", path).status_code == 503

    with stage.database.frozen(), repeated(cancel):
        yield {"NoHealthyWorkers": _FAILED, "CancelTaskFails": '"UH"'}
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


def test_each_alert_has_a_drill() -> None:
    assert sorted(name for each in DRILLS for name in each.alerts) == sorted(ALERTS)


@pytest.mark.parametrize("named", DRILLS, ids=lambda each: "-".join(each.alerts))
def test_a_drill(named: Drill, stage: Stage) -> None:
    stage.prometheus.await_end(set(named.alerts))
    with named.cause(stage) as printed:
        stage.prometheus.await_firing(set(named.alerts))
        for alert in named.alerts:
            stage.assert_prints(alert, printed.get(alert, ""))


def test_all_alerts_end(stage: Stage) -> None:
    """The causes are gone. CancelTaskFails takes the longest: its windows are 30 minutes."""
    stage.prometheus.await_end(set(ALERTS))


def _webhook(stage: Stage, url: str) -> str:
    body = {"url": url, "event_types": ["task_submitted"]}
    created = _call(stage, "POST", "/v1/webhooks", json=body).json()
    return str(created["webhook"]["id"])


def _delete_webhook(stage: Stage, webhook_id: str) -> None:
    _call(stage, "DELETE", f"/v1/webhooks/{webhook_id}")


def _call(stage: Stage, method: str, path: str, **arguments: Any) -> httpx.Response:
    """Repeats the call while it is `unavailable`, as on a machine that is too busy."""
    owner = stage.stack.rest("owner")

    def answered() -> httpx.Response | None:
        response = owner.call(method, path, **arguments)
        return None if response.status_code == 503 else response

    response = eventually(answered, _LIMIT_SECONDS)
    assert response is not None and response.status_code < 500, response
    return response


class FailingWebhooks:
    """Webhooks whose receivers fail. Attempts to one that has failed are rare, so each is new."""

    def __init__(self, stage: Stage, receivers: Receivers) -> None:
        self._stage = stage
        self._receivers = receivers
        self._workspace = Workspace(stage.stack)
        self._created: list[str] = []

    def fail(self) -> None:
        """Lets an attempt fail. Keeps the newest webhooks."""
        receiver = self._receivers.add(refuse("503 Service Unavailable"))
        self._created.append(_webhook(self._stage, receiver.url))
        if len(self._created) > _KEPT_WEBHOOKS:
            _delete_webhook(self._stage, self._created.pop(0))
        task_id = faults.submit(self._workspace, "true")
        eventually(lambda: receiver.requests, _LIMIT_SECONDS)
        faults.await_terminal(self._workspace, task_id, _LIMIT_SECONDS)

    def delete(self) -> None:
        for webhook_id in self._created:
            _delete_webhook(self._stage, webhook_id)


def _replace_leader(stage: Stage) -> None:
    for pid in stage.stack.pids("fleet"):
        stage.stack.kill(pid)
