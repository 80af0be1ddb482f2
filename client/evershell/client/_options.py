"""The credential and the options of calls, which `with_options` changes."""

import os
import re
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from evershell.workspace.v1 import workspace_service_pb2

from evershell.client._calls import Seconds, seconds
from evershell.client.answers import OnAnswer
from evershell.client.errors import ConfigurationError

CREDENTIAL_VARIABLE = "EVERSHELL_API_KEY"

Credential = str | Callable[[], str]
AsyncCredential = str | Callable[[], str] | Callable[[], Awaitable[str]]

_RPCS = workspace_service_pb2.DESCRIPTOR.services_by_name["WorkspaceService"].methods_by_name
_NAME = re.compile(r"[a-z0-9_.-]+")
# Headers that only the client itself sets, or that are reserved for gRPC and the edge.
_RESERVED = re.compile(
    r"authorization|traceparent|tracestate|idempotency-key|x-request-id|user-agent|te|content-type"
    r"|(grpc-|x-evershell-|x-envoy-).*|.*-bin"
)
_TRACE_HEADERS = ("traceparent", "tracestate")


@dataclass(frozen=True, slots=True)
class Options:
    """The options of calls."""

    # The time limit of each call, including its retries.
    timeout: float = 10.0
    # By method: a limit that replaces `timeout`.
    timeouts: Mapping[str, float] = field(default_factory=dict)
    max_retries: int = 3
    traceparent: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    on_answer: OnAnswer | None = None

    def changed(
        self,
        timeout: Seconds | None = None,
        timeouts: Mapping[str, Seconds] | None = None,
        max_retries: int | None = None,
        traceparent: str | None = None,
        metadata: Mapping[str, str] | None = None,
        on_answer: OnAnswer | None = None,
    ) -> Self:
        """The options with these changes; None keeps the old value. Raises ConfigurationError.

        A new `timeout` also removes the timeouts of single methods.
        """
        kept = self.timeouts if timeout is None else {}
        own = {rpc: seconds(limit) for rpc, limit in (timeouts or {}).items()}
        changed = replace(
            self,
            timeout=self.timeout if timeout is None else seconds(timeout),
            timeouts={**kept, **own},
            max_retries=self.max_retries if max_retries is None else max_retries,
            traceparent=self.traceparent if traceparent is None else traceparent,
            metadata={**self.metadata, **(metadata or {})},
            on_answer=on_answer or self.on_answer,
        )
        _check(changed)
        return changed

    def timeout_of(self, rpc: str) -> float:
        return self.timeouts.get(rpc, self.timeout)

    def headers(self, token: str, more: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """The metadata of a call. Raises ConfigurationError if the token is not valid."""
        authorization = ("authorization", f"Bearer {check_token(token)}")
        return [authorization, *_trace_headers(self.traceparent), *self.metadata.items(), *more]


def _check(options: Options) -> None:
    """Raises ConfigurationError if an option is not valid."""
    unknown = options.timeouts.keys() - _RPCS.keys()
    if unknown:
        raise ConfigurationError(
            f"There is no method {min(unknown)}. The methods are {', '.join(_RPCS)}."
        )
    if min([options.timeout, *options.timeouts.values()]) <= 0:
        raise ConfigurationError("timeout must be more than 0 s.")
    if options.max_retries < 0:
        raise ConfigurationError("max_retries must not be negative.")
    traceparent = options.traceparent or ""
    if not traceparent.isascii() or not traceparent.isprintable():
        raise ConfigurationError("traceparent is not printable ASCII.")
    for name, value in options.metadata.items():
        if not _NAME.fullmatch(name) or _RESERVED.fullmatch(name):
            raise ConfigurationError(f"Metadata cannot have the name {name!r}.")
        # The error does not show the value, which may be a secret.
        if (
            not isinstance(value, str)
            or not value.isascii()
            or not value.isprintable()
            or value != value.strip()
        ):
            raise ConfigurationError(f"The value of the metadata {name!r} is not printable ASCII.")


def find_credential(credential: AsyncCredential | None) -> AsyncCredential:
    """The credential, or the one in EVERSHELL_API_KEY. Raises ConfigurationError."""
    chosen = credential or os.environ.get(CREDENTIAL_VARIABLE, "")
    if not chosen:
        raise ConfigurationError(
            f"There is no credential. Pass `credential`, or set {CREDENTIAL_VARIABLE} to an API "
            "key."
        )
    return check_token(chosen) if isinstance(chosen, str) else chosen


def check_token(token: str) -> str:
    """Returns the token if it is valid. Otherwise raises ConfigurationError without showing it."""
    is_text = isinstance(token, str) and bool(token)
    if not is_text or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigurationError(
            "The credential is not valid: it is empty, or contains characters that no API key and "
            "no session token has."
        )
    return token


def _trace_headers(traceparent: str | None) -> list[tuple[str, str]]:
    """The headers of the trace: `traceparent`, or OpenTelemetry's current span if there is one."""
    if traceparent:
        return [("traceparent", traceparent)]
    # Does not import OpenTelemetry for a program that does not use it: a program that creates spans
    # has already imported this module.
    if "opentelemetry.trace" not in sys.modules:
        return []
    from opentelemetry import propagate

    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return [(name, carrier[name]) for name in _TRACE_HEADERS if name in carrier]
