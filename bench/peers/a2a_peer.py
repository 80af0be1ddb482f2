"""The a2a-sdk peer: starts its tasks, and reads what it has stored."""

import json
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psycopg

from bench.peers.peer import HttpRequest, Peer

# How many tasks are started at the same time.
_ARM_CALLERS = 8
# Counts 1 for each cancelled task: the SDK's table has one row for each task, so the SDK cannot
# record a cancellation twice.
_RECORDED = """
SELECT id, 1 FROM tasks WHERE id = ANY(%s) AND status ->> 'state' = 'TASK_STATE_CANCELED'
"""


class A2aPeer(Peer):
    """The server of a2a-sdk with its database store, over JSON-RPC.

    This peer promises less than the service: see `a2a_app`. The SDK keeps running tasks in memory,
    and signals the agent only for tasks in memory. So calls of the peer's API must start the tasks.
    """

    name = "a2a"
    _module = "bench.peers.a2a_app"

    def arm(self, count: int) -> Sequence[HttpRequest]:
        with httpx.Client(base_url=f"http://{self.address}", trust_env=False, timeout=30) as client:

            def start(_: int) -> str:
                request = self._request("SendMessage", _message(), task_id="")
                answer = client.post(request.path, headers=request.headers, content=request.body)
                return str(answer.json()["result"]["task"]["id"])

            with ThreadPoolExecutor(_ARM_CALLERS) as pool:
                task_ids = list(pool.map(start, range(count)))
        with psycopg.connect(self._database_url) as connection:
            # Updates the statistics: the query plans so far are for an empty table.
            connection.execute("ANALYZE")
        return [self._request("CancelTask", {"id": task_id}, task_id) for task_id in task_ids]

    def _request(self, method: str, params: dict[str, Any], task_id: str) -> HttpRequest:
        call = {"jsonrpc": "2.0", "id": str(uuid.uuid4()), "method": method, "params": params}
        headers = {
            "Authorization": f"Bearer {self._key}",
            "Content-Type": "application/json",
            "A2A-Version": "1.0",
        }
        return HttpRequest("/rpc", headers, json.dumps(call).encode(), task_id)

    def _recorded(
        self, connection: "psycopg.Connection[Any]", task_ids: Sequence[str]
    ) -> dict[str, int]:
        return dict(connection.execute(_RECORDED, [task_ids]).fetchall())


def _message() -> dict[str, Any]:
    """The parameters of a SendMessage call that starts a task without waiting for its end."""
    message = {
        "messageId": str(uuid.uuid4()),
        "role": "ROLE_USER",
        "parts": [{"text": "Find the slowest query and explain it."}],
    }
    return {"message": message, "configuration": {"returnImmediately": True}}
