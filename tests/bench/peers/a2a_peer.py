"""The peer on a2a-sdk: its process, its tasks and what it has stored."""

import hashlib
import json
import uuid
from collections.abc import Sequence
from typing import Any

from tests.bench.peers import HttpRequest
from tests.bench.peers.http_client import send_all
from tests.bench.peers.uvicorn_peer import UvicornPeer

# How many tasks are made at a time.
_ARM_CALLERS = 8


class A2aPeer(UvicornPeer):
    """The server of a2a-sdk with its database store, over JSON-RPC.

    Its promise is weaker: see `a2a_app`. It holds its running tasks in memory, and cancels only
    those through the agent, so they are made by calls of its API.
    """

    name = "a2a"
    _module = "tests.bench.peers.a2a_app"

    def arm(self, count: int) -> Sequence[HttpRequest]:
        requests = [self._request("SendMessage", _message(), task_id="") for _ in range(count)]
        responses = send_all(self.address, requests, _ARM_CALLERS)
        task_ids = [response.json()["result"]["task"]["id"] for response in responses]
        with self._database.connection() as connection:
            # Plans that were made for an empty table are made anew.
            connection.execute("ANALYZE")
        return [self._request("CancelTask", {"id": task_id}, task_id) for task_id in task_ids]

    def _request(self, method: str, params: dict[str, Any], task_id: str) -> HttpRequest:
        call = {"jsonrpc": "2.0", "id": str(uuid.uuid4()), "method": method, "params": params}
        headers = {
            "Authorization": f"Bearer {self._key}",
            "Content-Type": "application/json",
            "A2A-Version": "1.0",
        }
        return HttpRequest("POST", "/rpc", headers, json.dumps(call).encode(), task_id)

    def _prepare(self) -> None:
        pass

    def _recorded(self, task_ids: Sequence[str]) -> dict[str, int]:
        with self._database.connection() as connection:
            # The SDK's table has a row for each task, so it cannot record a cancellation twice.
            cancelled = connection.execute(
                "SELECT id, 1 FROM tasks "
                "WHERE id = ANY(%s) AND status ->> 'state' = 'TASK_STATE_CANCELED'",
                [list(task_ids)],
            )
            return dict(cancelled.fetchall())

    def _environment(self) -> dict[str, str]:
        sha256 = hashlib.sha256(self._key.encode()).hexdigest()
        return {**super()._environment(), "API_KEY_SHA256": sha256}


def _message() -> dict[str, Any]:
    """The parameters of SendMessage, which starts a task and does not wait for it."""
    message = {
        "messageId": str(uuid.uuid4()),
        "role": "ROLE_USER",
        "parts": [{"text": "Find the slowest query and explain it."}],
    }
    return {"message": message, "configuration": {"returnImmediately": True}}
