"""Authenticates the caller or the agent of each call."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from server.api import call as calls
from server.api.call import HOST_HEADER, Call
from server.api.interceptors.interceptor import Context, Details, Interceptor, Proceed
from server.auth.authenticator import Authenticator, HostBinding, bearer_token
from server.auth.pod_tokens import PodTokens
from server.core.errors import UnavailableError

# How often the credential of an open stream is checked again. With the time for which keys are
# cached, this stays within the 10 s after which a revoked key no longer works.
RECHECK_SECONDS = 3.0


class Authentication(Interceptor):
    """Authenticates before the request is read.

    One table says which kind of credential each service takes. A service that is not in the table
    cannot be called.
    """

    def __init__(
        self, authenticator: Authenticator, pod_tokens: PodTokens, host_binding: HostBinding | None
    ) -> None:
        self._authenticator = authenticator
        self._pod_tokens = pod_tokens
        self._host_binding = host_binding
        self._by_service: dict[str, Callable[[Call], Awaitable[None]]] = {
            "evershell.workspace.v1.WorkspaceService": self._authenticate_caller,
            "evershell.agent.v1.RuntimeService": self._authenticate_agent,
            "grpc.health.v1.Health": _allow_anyone,
            "grpc.reflection.v1.ServerReflection": _allow_anyone,
            "grpc.reflection.v1alpha.ServerReflection": _allow_anyone,
        }

    async def around(self, details: Details, context: Context, proceed: Proceed) -> Any:
        await self._authenticate(details)
        return await proceed()

    async def around_stream(self, details: Details, context: Context, proceed: Proceed) -> Any:
        """Ends the stream when its credential becomes invalid (revoked or expired)."""
        streaming = asyncio.ensure_future(self.around(details, context, proceed))
        try:
            while not (await asyncio.wait((streaming,), timeout=RECHECK_SECONDS))[0]:
                # If the database cannot be reached, the next check decides.
                with suppress(UnavailableError):
                    await self._authenticate(details)
            return streaming.result()
        finally:
            streaming.cancel()
            await asyncio.gather(streaming, return_exceptions=True)

    async def _authenticate(self, details: Details) -> None:
        service = details.method.split("/")[1]
        await self._by_service[service](calls.current())

    async def _authenticate_caller(self, call: Call) -> None:
        call.caller = await self._authenticator.authenticate(call.metadata.get("authorization"))
        host = call.metadata.get(HOST_HEADER)
        if self._host_binding is not None and host:
            await self._host_binding.check(call.caller, host)

    async def _authenticate_agent(self, call: Call) -> None:
        call.agent = self._pod_tokens.identify(bearer_token(call.metadata.get("authorization")))


async def _allow_anyone(call: Call) -> None:
    """Requires no credential."""
