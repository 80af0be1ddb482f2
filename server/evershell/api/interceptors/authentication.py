"""Authenticates the caller or the agent of each call."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from evershell.api.call import HOST_HEADER, Call
from evershell.api.interceptors.interceptor import Handler, Interceptor, Method
from evershell.api.method_options import (
    CARD,
    PUBLIC_CARD_HEADER,
    PUBLIC_SERVICES,
    RUNTIME_SERVICE,
    WAITS,
)
from evershell.auth.authenticator import Authenticator, HostBinding, bearer_token
from evershell.auth.pod_tokens import PodTokens
from evershell.core import errors
from evershell.core.caller import calling_org
from evershell.core.errors import UnavailableError
from evershell.core.runtime import AgentIdentity
from evershell.pod.tls import agent_name

# The interval at which the credential of an open stream, or of a call that waits for the end of a
# task, is checked again. This interval and the time for which keys are cached add up to less than
# 10 s, because a revoked key must stop working within 10 s.
RECHECK_SECONDS = 3.0

# Sets the caller or the agent of the call. Raises Failure or UnavailableError.
_Authenticate = Callable[[Call], Awaitable[None]]


class Authentication(Interceptor):
    """Authenticates each call before its request is read.

    One table says which kind of credential each service takes. A server cannot be made if one of
    its services is missing from the table.
    """

    def __init__(
        self,
        authenticator: Authenticator,
        pod_tokens: PodTokens,
        host_binding: HostBinding | None,
        *,
        agent_tls: bool = False,
    ) -> None:
        """With `agent_tls`, agents have their own listener, and each agent has a certificate."""
        self._authenticator = authenticator
        self._pod_tokens = pod_tokens
        self._host_binding = host_binding
        self._agent_tls = agent_tls
        self._by_service: dict[str, _Authenticate | None] = {
            **dict.fromkeys(PUBLIC_SERVICES, self._authenticate_caller),
            RUNTIME_SERVICE: self._authenticate_agent,
            "grpc.health.v1.Health": None,
            "grpc.reflection.v1.ServerReflection": None,
            "grpc.reflection.v1alpha.ServerReflection": None,
        }

        # Methods that take a different kind of credential from the rest of their service.
        self._by_method: dict[str, _Authenticate] = {
            f"/{RUNTIME_SERVICE}/Bootstrap": self._authenticate_bootstrapping,
            CARD: self._authenticate_unless_public,
        }

    def wrap(self, method: Method, proceed: Handler) -> Handler:
        authenticate = self._by_method.get(method.path) or self._by_service[method.service]
        if authenticate is None:
            return proceed

        async def authenticated(call: Call) -> Any:
            await authenticate(call)
            return await proceed(call)

        async def checked_again(call: Call) -> Any:
            await authenticate(call)
            rechecks = _Rechecks(authenticate, call)
            try:
                return await proceed(call)
            except asyncio.CancelledError:
                rechecks.raise_error()
                raise
            finally:
                rechecks.stop()

        return checked_again if method.is_stream or method.path == WAITS else authenticated

    async def _authenticate_caller(self, call: Call) -> None:
        if self._agent_tls and _certificate_names(call):
            raise errors.unauthenticated("The connection of an agent is only for RuntimeService.")
        call.caller = await self._authenticator.authenticate(call.metadata.get("authorization"))
        calling_org.set(call.caller.org_id)
        host = call.metadata.get(HOST_HEADER)
        if self._host_binding is not None and host:
            await self._host_binding.check(call.caller, host)

    async def _authenticate_unless_public(self, call: Call) -> None:
        # A public card needs no credential. The core decides whether a workspace has a public card.
        if PUBLIC_CARD_HEADER not in call.metadata:
            await self._authenticate_caller(call)

    async def _authenticate_agent(self, call: Call) -> None:
        self._set_agent(
            call, self._pod_tokens.identify(bearer_token(call.metadata.get("authorization")))
        )

    async def _authenticate_bootstrapping(self, call: Call) -> None:
        token = bearer_token(call.metadata.get("authorization"))
        self._set_agent(call, self._pod_tokens.identify_bootstrapping(token))

    def _set_agent(self, call: Call, agent: AgentIdentity) -> None:
        name = agent_name(agent.workspace_id, agent.epoch).encode()
        if self._agent_tls and name not in _certificate_names(call):
            raise errors.unauthenticated("The certificate of the connection is not the agent's.")
        call.agent = agent


def _certificate_names(call: Call) -> list[bytes]:
    """The names in the certificate that the peer has presented; none without TLS."""
    return list(call.context.auth_context().get("x509_subject_alternative_name", ()))


class _Rechecks:
    """Checks a stream's credential every RECHECK_SECONDS, and ends the stream if a check fails.

    There may be thousands of streams, which mostly wait. Each has a timer, and a task only while
    its credential is being checked. A call that waits for the end of a task is treated like a
    stream.
    """

    __slots__ = ("_authenticate", "_call", "_check", "_error", "_stream", "_timer")

    def __init__(self, authenticate: _Authenticate, call: Call) -> None:
        stream = asyncio.current_task()
        assert stream is not None, "a call runs in a task"
        self._authenticate = authenticate
        self._call = call
        self._stream = stream
        self._timer: asyncio.TimerHandle | None = None
        self._check: asyncio.Task[None] | None = None
        self._error: Exception | None = None
        self._schedule()

    def raise_error(self) -> None:
        """Raises the error if the stream was cancelled because a check failed."""
        # If the caller has cancelled the call as well, `uncancel` does not return 0.
        if self._error is not None and not self._stream.uncancel():
            raise self._error from None

    def _schedule(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(RECHECK_SECONDS, self._begin)

    def _begin(self) -> None:
        self._check = asyncio.create_task(self._check_once())

    async def _check_once(self) -> None:
        try:
            # If the database cannot be reached, the next check decides.
            with suppress(UnavailableError):
                await self._authenticate(self._call)
        except Exception as error:  # noqa: BLE001 - raised in the stream
            self._error = error
            self._stream.cancel()
        else:
            self._check = None
            self._schedule()

    def stop(self) -> None:
        """Ends the checks, at the end of the stream."""
        if self._timer is not None:
            self._timer.cancel()
        if self._check is not None:
            self._check.cancel()
