"""The calls to the API server: list, watch, get, create, patch and delete in one namespace.

lightkube finds and reads the kubeconfig or the service account. The calls themselves are made here,
because lightkube offers neither bookmarks nor a time limit for a silent watch.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import httpx2
import structlog
from lightkube import KubeConfig
from lightkube.config.client_adapter import AsyncClient, ConnectionParams
from lightkube.core.exceptions import ConfigError

from evershell.backoff import backoff
from evershell.fleet.kubernetes.objects import Object
from evershell.version import VERSION

log = structlog.get_logger()

_ATTEMPT_SECONDS = 5.0
# The API server ends a watch after this time. It sends a bookmark shortly before, so a watch that
# stays silent for longer is dead.
_WATCH_SECONDS = 60
_SILENCE_SECONDS = _WATCH_SECONDS + 5.0
_PAGE_SIZE = 500
_TOO_MANY_REQUESTS, _GONE = 429, 410


class ApiError(Exception):
    """The API server refused the call. The text is its human-readable message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class UnreachableError(Exception):
    """The API server did not answer in time. The call may have had an effect."""


class GoneError(Exception):
    """The API server no longer knows the version from which the watch should continue."""


class NotConfiguredError(Exception):
    """There is no usable kubeconfig and no service account. The message says why."""


class _RetryLaterError(Exception):
    """A failure after which a repeated call may succeed. The server may have answered or not."""

    def __init__(self, problem: str, after_seconds: float = 0.0) -> None:
        super().__init__(problem)
        self.after_seconds = after_seconds


class Api:
    """The API server, for the objects of one namespace.

    A call that fails for a temporary reason (no connection, an error of the server, too many
    requests) is repeated until its time limit. If an earlier attempt took effect, but its answer
    was lost, then creating an object fails with 409, and deleting it fails with 404.
    """

    def __init__(
        self,
        http: httpx2.AsyncClient,
        namespace: str,
        labels: str,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`labels` is the label selector of the objects that are listed and watched."""
        self._http = http
        self.namespace = namespace
        self._labels = labels
        self._sleep = sleep
        self._base = f"api/v1/namespaces/{namespace}"

    async def read_namespace(self, limit_seconds: float) -> Object:
        """The namespace itself. Raises ApiError, UnreachableError."""
        return await self._call("GET", self._base, limit_seconds)

    async def list(self, kind: str, limit_seconds: float) -> tuple[list[Object], int]:
        """All objects of the kind (for example `pods`), and the version of the list.

        The list includes all changes that were made before the call. `limit_seconds` applies to
        each page. Raises ApiError, UnreachableError; GoneError if the token of the next page has
        expired.
        """
        objects: list[Object] = []
        params = {"labelSelector": self._labels, "limit": str(_PAGE_SIZE)}
        while True:
            page = await self._call("GET", f"{self._base}/{kind}", limit_seconds, params)
            objects += page["items"]
            more = page["metadata"].get("continue")
            if not more:
                return objects, int(page["metadata"]["resourceVersion"])
            params["continue"] = more

    async def watch(self, kind: str, version: int) -> AsyncIterator[tuple[str, Object]]:
        """The changes after the version: ADDED, MODIFIED, DELETED or BOOKMARK, and the object.

        Ends after a minute. Raises GoneError, ApiError, UnreachableError.
        """
        params = {
            "labelSelector": self._labels,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": str(version),
            "timeoutSeconds": str(_WATCH_SECONDS),
        }
        timeout = httpx2.Timeout(_ATTEMPT_SECONDS, read=_SILENCE_SECONDS)
        path = f"{self._base}/{kind}"
        try:
            async with self._http.stream("GET", path, params=params, timeout=timeout) as answer:
                if answer.status_code != httpx2.codes.OK:
                    await answer.aread()
                    _raise_for(answer)
                async for line in answer.aiter_lines():
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        _raise_for_status(event["object"])
                    yield event["type"], event["object"]
        except (httpx2.HTTPError, _RetryLaterError, ValueError) as error:
            raise UnreachableError(_text(error)) from error

    async def get(self, kind: str, name: str, limit_seconds: float) -> Object:
        """The object. Raises ApiError, UnreachableError."""
        return await self._call("GET", f"{self._base}/{kind}/{name}", limit_seconds)

    async def create(self, kind: str, body: Object, limit_seconds: float) -> Object:
        """Creates the object. Raises ApiError (409 if the object exists), UnreachableError."""
        return await self._call("POST", f"{self._base}/{kind}", limit_seconds, body=body)

    async def patch(self, kind: str, name: str, body: Object, limit_seconds: float) -> Object:
        """Merges the body into the object (RFC 7396). Raises ApiError, UnreachableError."""
        return await self._call("PATCH", f"{self._base}/{kind}/{name}", limit_seconds, body=body)

    async def delete(
        self, kind: str, name: str, grace_seconds: int, limit_seconds: float
    ) -> Object:
        """Starts to delete the object. Raises ApiError (404 if there is none), UnreachableError."""
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": grace_seconds}
        return await self._call("DELETE", f"{self._base}/{kind}/{name}", limit_seconds, body=body)

    async def _call(
        self,
        method: str,
        path: str,
        limit_seconds: float,
        params: dict[str, str] | None = None,
        body: Object | None = None,
    ) -> Object:
        until, failures = time.monotonic() + limit_seconds, 0
        while True:
            try:
                return await self._attempt(method, path, params, body)
            except _RetryLaterError as error:
                if time.monotonic() >= until:
                    log.warning(
                        "api_server_unreachable", method=method, path=path, problem=str(error)
                    )
                    raise UnreachableError(str(error)) from error
                failures += 1
                pause = backoff(failures, first=0.1, longest=2.0)
                await self._sleep(max(error.after_seconds, pause))

    async def _attempt(
        self, method: str, path: str, params: dict[str, str] | None, body: Object | None
    ) -> Object:
        content = json.dumps(body).encode() if body is not None else None
        media_type = "application/merge-patch+json" if method == "PATCH" else "application/json"
        headers = {"content-type": media_type} if body is not None else {}
        try:
            answer = await self._http.request(
                method, path, params=params, content=content, headers=headers
            )
            _raise_for(answer)
            document: Object = answer.json()
        except (httpx2.HTTPError, ValueError) as error:
            raise _RetryLaterError(_text(error)) from error
        return document


@asynccontextmanager
async def connect(
    namespace: str, labels: str, transport: httpx2.AsyncBaseTransport | None = None
) -> AsyncIterator[Api]:
    """Connects to the API server of the service account or of the kubeconfig.

    An empty namespace means the namespace of the configuration. `transport` is for tests. Raises
    NotConfiguredError.
    """
    try:
        config = KubeConfig.from_env().get()
        assert config is not None
        timeout = httpx2.Timeout(_ATTEMPT_SECONDS)
        http = AsyncClient(
            config, ConnectionParams(timeout=timeout, transport=cast(Any, transport))
        )
    except (ConfigError, OSError, KeyError, AssertionError) as error:
        raise NotConfiguredError(_text(error)) from error
    # Shown in the cluster's audit log.
    http.headers["user-agent"] = f"evershell/{VERSION}"
    async with http:
        yield Api(http, namespace or config.namespace, labels)


def _raise_for(answer: httpx2.Response) -> None:
    if answer.is_success:
        return
    try:
        status = answer.json()
    except ValueError:
        status = {}
    if not isinstance(status, dict):
        status = {}
    code = answer.status_code
    message = status.get("message") or f"it answered {code}"
    if code == _TOO_MANY_REQUESTS or code >= httpx2.codes.INTERNAL_SERVER_ERROR:
        after = answer.headers.get("retry-after", "")
        raise _RetryLaterError(message, float(after) if after.isdecimal() else 0.0)
    _raise_for_status({"code": code, "message": message})


def _raise_for_status(status: Object) -> None:
    code, message = int(status.get("code") or 0), status.get("message") or "unknown error"
    if code == _GONE:
        raise GoneError(message)
    if code == _TOO_MANY_REQUESTS or code >= httpx2.codes.INTERNAL_SERVER_ERROR:
        raise _RetryLaterError(message)
    raise ApiError(code, message)


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__
