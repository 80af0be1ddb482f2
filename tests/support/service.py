"""A service under test, wherever it runs, and helpers for what tests do with it."""

import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar

import psycopg

from tests.support.waiting import LIMIT_SECONDS, eventually
from tests.support.wires import Grpc, Rest


class Service:
    """A running service: its addresses, and callers for tests."""

    def __init__(self) -> None:
        # The content of ready.json, or at least those parts that tests use.
        self.ready: dict[str, Any] = {}
        self._rest: dict[str, Rest] = {}
        self._grpc: dict[tuple[str, str], Grpc] = {}
        self._own: list[Callable[[], None]] = []
        # A lock, because several threads of a test may ask for the same new caller at once.
        self._making = threading.Lock()

    @property
    def tokens(self) -> dict[str, str]:
        tokens: dict[str, str] = self.ready["demo"]["tokens"]
        return tokens

    def rest(self, token: str = "full_access") -> Rest:
        """Returns a REST caller with this demo credential or bearer token.

        If `token` is empty, the caller sends no credential.
        """
        with self._making:
            if token not in self._rest:
                self._rest[token] = Rest(self.ready["rest_url"], self.tokens.get(token, token))
            return self._rest[token]

    def grpc(self, token: str = "full_access", address: str | None = None) -> Grpc:
        """Returns a gRPC caller.

        It calls through Envoy unless `address` is the address of a worker.
        """
        key = (token, address or self.ready["grpc_addr"])
        with self._making:
            if key not in self._grpc:
                self._grpc[key] = Grpc(key[1], self.tokens.get(token, token))
            return self._grpc[key]

    def closes(self, close: Callable[[], None]) -> None:
        """Adds a function that closes connections of a test. `close_callers` will call it."""
        self._own.append(close)

    def close_callers(self) -> None:
        """Closes the connections of all callers."""
        for close in self._own:
            close()
        self._own.clear()
        for rest in self._rest.values():
            rest.close()
        for rpc in self._grpc.values():
            rpc.close()
        self._rest.clear()
        self._grpc.clear()

    def database(self) -> "psycopg.Connection[Any]":
        """Opens a connection to the primary of the database."""
        return psycopg.connect(
            self.ready["database_url"], autocommit=True, target_session_attrs="read-write"
        )


class ServiceWorkspace:
    """A workspace that one test creates."""

    # How long a test waits for an event or a status.
    limit_seconds: ClassVar[float] = LIMIT_SECONDS
    # The demo credential with which tests call the workspace.
    _token = "full_access"

    def __init__(self, service: Service, token: str = "full_access", name: str = "test") -> None:
        self.service = service
        self._token = token
        self.id: str = self.rest.post("/v1/workspaces", {"name": name}, status=201)["id"]
        self.path = f"/v1/workspaces/{self.id}"
        self.await_event("workspace_provisioned")

    @property
    def rest(self) -> Rest:
        return self.service.rest(self._token)

    def submit(self, *lines: str, **fields: Any) -> str:
        """Submits a task with these commands. Returns its id."""
        task_id: str = self.rest.post(
            f"{self.path}/tasks", {"description": "\n".join(lines), **fields}
        )["task_id"]
        return task_id

    def begin(self, *lines: str, **fields: Any) -> str:
        """Submits a task and waits until its first command runs. Returns its id."""
        task_id = self.submit(*lines, **fields)
        self.await_phase(task_id, "tool_call")
        return task_id

    def cancel(self, status: int = 202, **fields: Any) -> dict[str, Any]:
        return self.rest.post(f"{self.path}/task/cancel", fields or None, status)

    def task(self, task_id: str) -> dict[str, Any]:
        return self.rest.get(f"{self.path}/tasks/{task_id}")

    def get(self) -> dict[str, Any]:
        return self.rest.get(self.path)

    def await_event(self, type_: str, task_id: str = "", after: int = 0) -> dict[str, Any]:
        """Follows the log until an event of this type. Returns the event.

        After the time limit, fails at the next heartbeat of the stream. A heartbeat is sent after
        4 s without an event.
        """
        deadline = time.monotonic() + self.limit_seconds
        for message in self.rest.events(self.id, after):
            if "event" not in message:
                if time.monotonic() < deadline:
                    continue
                break
            event: dict[str, Any] = message["event"]
            if event["type"] == type_ and (not task_id or event["task_id"] == task_id):
                return event
        raise AssertionError(f"no {type_}: {self.get()} {self.log()}")

    def await_end(self, task_id: str) -> dict[str, Any]:
        """Waits until the task has ended. Returns the payload of `task_completed`."""
        payload: dict[str, Any] = self.await_event("task_completed", task_id)["task_completed"]
        return payload

    def await_phase(self, task_id: str, phase: str) -> None:
        """Waits until the task is in this phase of its iteration."""
        eventually(lambda: self.task(task_id)["phase"] == phase, self.limit_seconds)

    def await_status(self, status: str) -> dict[str, Any]:
        eventually(lambda: self.get()["status"] == status, self.limit_seconds)
        return self.get()

    def replace_agent(self) -> None:
        """Stops and resumes the workspace, which gives it an agent in a new epoch."""
        self.rest.post(f"{self.path}/stop")
        self.await_status("stopped")
        self.rest.post(f"{self.path}/resume", {})
        self.await_status("idle")

    def log(self) -> list[dict[str, Any]]:
        """Reads the whole log of the workspace from the database."""
        with self.service.database() as connection:
            rows = connection.execute(
                "SELECT seq, type, task_id, payload FROM events "
                "WHERE workspace_id = %s ORDER BY seq",
                (self.id,),
            ).fetchall()
        return [
            {"seq": seq, "type": type_, "task_id": task_id, **payload}
            for seq, type_, task_id, payload in rows
        ]
