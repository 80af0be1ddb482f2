"""Every kind of call that makes much work for a worker, each for a few seconds.

Heartbeats of many agents arrive meanwhile.
"""

import base64
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle

import grpc
from evershell.workspace.v1 import workspace_service_pb2

from evershell.auth.pod_tokens import PodTokens
from tests.bench import arming, idle_fleet, windows
from tests.bench.http2 import message
from tests.bench.rows.replay import read_stream
from tests.bench.side import SERVICE, Side
from tests.bench.simulated_agents import Agents

AGENTS = 500
PAGE = 200
_INVALID_ARGUMENT = 3
_ARMED = 5_000
_EVENTS = 20_000
_WATCHERS = 8
# 200 tasks with descriptions of this length just fit into one page.
_DESCRIPTION_CHARACTERS = 4_000
_LARGE_EVENTS = 200
# Two bytes each: almost as much as the output of a tool that an agent keeps.
_LARGE_OUTPUT_CHARACTERS = 30_000

Part = Callable[[], object]


class MixedLoad:
    """The parts of the load on one worker, by name."""

    def __init__(self, side: Side, address: str, pid: int, agent_address: str) -> None:
        """`side` has the database; the worker at `address` is the process `pid`."""
        self._side, self._address, self._pid = side, address, pid
        self._agent_address = agent_address

    def parts(self) -> dict[str, Part]:
        """Each makes its calls and fails if one has an unexpected status."""
        signed = self._side.stack.tokens["owner"].rpartition(".")[0]
        signature = base64.urlsafe_b64encode(secrets.token_bytes(64)).decode().rstrip("=")
        return {
            "CancelTask, 16 callers": lambda: self._cancel(16),
            "CancelTask, 64 callers": lambda: self._cancel(64),
            "GetTask": self._get_task,
            "ListTasks": self._list_tasks,
            "ListTasks, large tasks": lambda: self._list_tasks(100_000),
            "ListAuditEntries": self._list_audit_entries,
            "WatchEvents": self._replay,
            "WatchEvents, large events": self._replay_large_events,
            "unknown keys": lambda: self._refused(f"sk_{secrets.token_urlsafe(32)}"),
            "wrong signatures": lambda: self._refused(f"{signed}.{signature}"),
            "large requests": self._large_requests,
        }

    @contextmanager
    def heartbeats(self) -> Iterator[None]:
        """Sends the heartbeats of many idle agents inside the block."""
        url = self._side.stack.ready["database_url"]
        idle_fleet.insert(url, 1, AGENTS)
        tokens = PodTokens((self._side.stack.state_dir / "control-plane.jwk").read_text())
        agents = Agents.connect(self._address, tokens, AGENTS)
        over = threading.Event()

        def beat() -> None:
            while not over.is_set():
                agents.beat(5.0)

        with ThreadPoolExecutor(1) as pool:
            beating = pool.submit(beat)
            try:
                yield
            finally:
                over.set()
        beating.result()
        agents.close()
        assert set(agents.statuses) == {0}, agents.statuses

    def _call(
        self,
        method: str,
        bodies: Sequence[bytes],
        callers: int,
        seconds: float,
        token: str = "full_access",
        status: int = windows.OK,
    ) -> None:
        connection = self._side.connect(method, token, self._address)
        windows.figures_of(connection, cycle(bodies), callers, seconds, [self._pid], status)

    def _cancel(self, callers: int) -> None:
        tasks = self._side.arm(_ARMED, self._agent_address)
        bodies = [windows.cancel_body(workspace_id) for workspace_id in tasks.workspace_ids]
        connection = self._side.connect("CancelTask", address=self._address)
        calls = windows.figures_of(connection, bodies, callers, 3.0, [self._pid])
        arming.check(self._side.database, tasks, int(calls["calls"]) + windows.WARM_UP_CALLS)

    def _get_task(self) -> None:
        tasks = self._side.arm(100, self._agent_address)
        bodies = [
            message(
                workspace_service_pb2.GetTaskRequest(
                    workspace_id=workspace_id, task_id=tasks.task_id(workspace_id)
                ).SerializeToString()
            )
            for workspace_id in tasks.workspace_ids
        ]
        self._call("GetTask", bodies, 64, 2.0)

    def _list_tasks(self, characters: int = _DESCRIPTION_CHARACTERS) -> None:
        (workspace_id,) = self._side.arm(1, self._agent_address).workspace_ids
        self._side.database.execute(
            """
            INSERT INTO tasks (
                id, workspace_id, description, metadata, max_iterations, status, phase, iterations,
                created_at, started_at, completed_at, reason, result, forced, input_tokens,
                output_tokens, model_calls, tool_calls
            )
            SELECT 'task_a' || i || %(id)s, workspace_id, repeat('é', %(characters)s),
                '{"key": "value"}', max_iterations, 'completed', '', 1, created_at, started_at,
                now(), '', repeat('r', 100), false, 1, 1, 1, 1
            FROM tasks, generate_series(1, %(count)s) AS i WHERE workspace_id = %(id)s
            """,
            {"id": workspace_id, "characters": characters, "count": PAGE},
        )
        request = workspace_service_pb2.ListTasksRequest(workspace_id=workspace_id, page_size=PAGE)
        self._call("ListTasks", [message(request.SerializeToString())], 16, 2.0)

    def _list_audit_entries(self) -> None:
        """The cancellations before have left entries."""
        request = workspace_service_pb2.ListAuditEntriesRequest(page_size=PAGE)
        self._call("ListAuditEntries", [message(request.SerializeToString())], 16, 2.0)

    def _replay(self) -> None:
        log = arming.create_log(self._side.database, _EVENTS, self._agent_address)
        self._watch(log, _EVENTS)

    def _replay_large_events(self) -> None:
        log = arming.create_log(self._side.database, _LARGE_EVENTS, self._agent_address)
        self._side.database.execute(
            """
            UPDATE events
            SET payload = jsonb_set(payload, '{tool_call,output}', to_jsonb(repeat('é', %s)))
            WHERE workspace_id = %s AND type = 'iteration_completed'
            """,
            (_LARGE_OUTPUT_CHARACTERS, log),
        )
        self._watch(log, _LARGE_EVENTS)

    def _watch(self, workspace_id: str, events: int) -> None:
        request = workspace_service_pb2.WatchEventsRequest(workspace_id=workspace_id)
        body = request.SerializeToString()

        def watch(_: int) -> None:
            connection = self._side.connect("WatchEvents", address=self._address)
            read_stream(connection, body, events, [self._pid])

        with ThreadPoolExecutor(_WATCHERS) as pool:
            list(pool.map(watch, range(_WATCHERS)))

    def _refused(self, token: str) -> None:
        body = windows.cancel_body("ws_unknown")
        self._call("CancelTask", [body], 16, 2.0, token, windows.UNAUTHENTICATED)

    def _large_requests(self) -> None:
        """Almost 1 MiB, the limit of a message. The description is too long, so it is refused."""
        body = workspace_service_pb2.SubmitTaskRequest(
            workspace_id="ws_unknown", description="é" * 500_000
        ).SerializeToString()
        metadata = (("authorization", f"Bearer {self._side.stack.tokens['full_access']}"),)
        until = time.monotonic() + 2.0

        def submit(_: int) -> None:
            with grpc.insecure_channel(self._address) as channel:
                call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
                    f"{SERVICE}/SubmitTask"
                )
                while time.monotonic() < until:
                    try:
                        call(body, metadata=metadata)
                    except grpc.RpcError as error:
                        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error
                    else:
                        raise AssertionError("the request was accepted")

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(submit, range(4)))
