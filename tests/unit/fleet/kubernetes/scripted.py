"""An API server in memory that answers as a test says."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2

from evershell.fleet.kubernetes.api import Api
from evershell.fleet.kubernetes.objects import Object

Handler = Callable[[httpx2.Request], httpx2.Response | Awaitable[httpx2.Response]]


def failure(status: int, message: str = "no", **headers: str) -> httpx2.Response:
    """An answer of the API server with an error."""
    body = {"kind": "Status", "code": status, "message": message}
    return httpx2.Response(
        status, json=body, headers={k.replace("_", "-"): v for k, v in headers.items()}
    )


def listed(version: int, *found: Object) -> httpx2.Response:
    """The answer to a list."""
    return httpx2.Response(
        200, json={"metadata": {"resourceVersion": str(version)}, "items": list(found)}
    )


def watched(*events: tuple[str, Object]) -> httpx2.Response:
    """The answer to a watch, which then ends."""
    lines = [json.dumps({"type": type_, "object": found}) + "\n" for type_, found in events]
    return httpx2.Response(200, content="".join(lines).encode())


def pod(version: int, name: str = "agent-ws-1-1", uid: str = "u1", **status: Any) -> Object:
    """A pod of workspace ws_1 with this status."""
    return {
        "metadata": {
            "name": name,
            "uid": uid,
            "resourceVersion": str(version),
            "labels": {
                "evershell.ai/workspace": "ws_1",
                "evershell.ai/epoch": name.rpartition("-")[2],
            },
        },
        "spec": {"nodeName": "node-1", "containers": [{"name": "agent"}]},
        "status": status,
    }


def running_status() -> dict[str, Any]:
    """The status of a pod that runs."""
    return {"phase": "Running", "containerStatuses": [{"state": {"running": {}}}]}


class Script:
    """The answers to the calls, in order. The last one is repeated."""

    def __init__(self, *answers: httpx2.Response | Exception | Handler) -> None:
        self._answers = list(answers)
        # The method and the path of each call, with its parameters.
        self.calls: list[tuple[str, str, dict[str, str]]] = []
        # The pauses between attempts, in seconds.
        self.pauses: list[float] = []

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.calls.append((request.method, request.url.path, dict(request.url.params)))
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, httpx2.Response):
            return answer
        given = answer(request)
        return given if isinstance(given, httpx2.Response) else await given

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)


@asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[Api]:
    """A client of an API server that answers as the script says."""
    transport = httpx2.MockTransport(script)
    async with httpx2.AsyncClient(transport=transport, base_url="https://cluster") as http:
        yield Api(http, "default", "managed=true", script.pause)
